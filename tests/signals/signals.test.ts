import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import * as invoiceApp from '../../services/invoice-app/src/service.ts';
import { startTracing, stopTracing } from '../../libraries/chassis/src/tracing.ts';
import * as paymentProvider from '../../services/payment-provider/src/service.ts';
import { startCollector, type Collector } from './collector.ts';
import { hasPrometheus, startPrometheus, type Prometheus } from './prometheus.ts';
import { post, startService, type RunningService } from '../support/start-service.ts';
import {
  alertsFile,
  findMissing,
  readAlertCases,
  readAlerts,
  readDashboard,
  readExpressions,
  readRelabeling,
  readRunbook,
  readScrape,
  type Samples,
} from './signals.ts';

const jobs = ['invoice-app', 'payment-provider'];
/** Series that Prometheus creates itself, so no scrape has them, with their labels. */
const builtInSeries: [name: string, labels: Record<string, string>][] = [
  ...jobs.map((job): [string, Record<string, string>] => ['up', { part_of: 'payloop', job, instance: job }]),
  ['ALERTS', { alertname: 'any', alertstate: 'firing' }],
];

let collector: Collector;
let provider: RunningService;
let app: RunningService;
const samples: Samples = new Map();
let traceId: string;

// Collects the samples of both services after payments, and of an invoice-app without its provider.
beforeAll(async () => {
  collector = await startCollector();
  await startTracing('both', { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url });
  provider = await startService(paymentProvider, { FAULTS: 'fail=0.5', FAULT_SEED: '1' });
  app = await startService(invoiceApp, {
    PAYMENT_PROVIDER_URL: `${provider.url}/payments/pay`,
    SEED_INVOICES: '3000',
  });
  for (let n = 0; n < 5; n += 1) {
    const answer = await fetch(`${app.url}/invoices/pay`, { method: 'POST' });
    traceId = answer.headers.get('X-Request-Id')!;
  }
  await using lonely = await startService(invoiceApp, { PAYMENT_PROVIDER_URL: 'http://127.0.0.1:1/' });
  for (const path of ['/invoices/pay', '/rest/v1/invoices/pay']) await post(lonely.url + path);
  for (const [job, { metricsUrl }] of Object.entries({
    'invoice-app': app,
    'payment-provider': provider,
    // The space makes the key unique: this is another pod of invoice-app.
    'invoice-app ': lonely,
  })) {
    readScrape(samples, await (await fetch(metricsUrl)).text(), {
      part_of: 'payloop',
      job: job.trim(),
      instance: new URL(metricsUrl).host,
    });
  }
  for (const [name, labels] of builtInSeries) samples.set(name, [...(samples.get(name) ?? []), labels]);
});
afterAll(async () => {
  await app[Symbol.asyncDispose]();
  await provider[Symbol.asyncDispose]();
  await stopTracing();
  collector.close();
});

describe('every metric and label in the expressions exists', () => {
  test.each(readExpressions(jobs))('%s', (_where, expr) => {
    expect(findMissing(expr, samples)).toEqual([]);
  });

  test.each([
    ['sum(rate(payment_total[5m]))', 'payment_total'],
    ['payments_total{outcome="lost"}', 'payments_total{outcome="lost"}'],
    ['payments_total{result="unknown"}', 'payments_total{result="unknown"}'],
    ['payments_total{outcome=~"unknown|lost"}', 'payments_total{outcome=~"unknown|lost"}'],
    ['payments_total{outcome!="lost"}', 'payments_total{outcome!="lost"}'],
    ['sum by (route) (payments_total)', 'the label route'],
    ['sum(rate(payments_total[5m])', 'invalid PromQL at 28'],
  ])('reports the missing part of %s', (expr, missing) => {
    expect(findMissing(expr, samples)).toEqual([missing]);
  });
});

/** The prefix of the labels that Prometheus discovers on a pod. */
const pod = '__meta_kubernetes_pod';
const installed = hasPrometheus();
if (!installed) process.stdout.write('prometheus: skipped, not installed\n');
describe.skipIf(!installed)('with a real Prometheus', () => {
  let prometheus: Prometheus;
  beforeAll(async () => {
    const target = (
      name: string,
      { metricsUrl }: RunningService,
      port = 'metrics',
      component = 'service',
    ) => ({
      address: new URL(metricsUrl).host,
      labels: {
        [`${pod}_label_app_kubernetes_io_name`]: name,
        [`${pod}_label_app_kubernetes_io_part_of`]: 'payloop',
        [`${pod}_label_app_kubernetes_io_component`]: component,
        [`${pod}_container_port_name`]: port,
      },
    });
    const targets = [
      target('invoice-app', app),
      target('payment-provider', provider),
      // Not service metrics, so not scraped.
      target('invoice-app', app, 'http'),
      target('postgres', provider, 'metrics', 'database'),
    ];
    prometheus = await startPrometheus(targets, readRelabeling(), alertsFile);
  });
  afterAll(() => prometheus.stop());

  test('scrapes both services with their labels', async () => {
    const up = async () => {
      const data = await prometheus.get('query', { query: 'sum by (job, part_of) (up)' });
      const { result } = data as { result: { metric: object; value: [number, string] }[] };
      return new Set(result.map(({ metric, value }) => Object.assign(metric, { up: value[1] })));
    };
    await expect
      .poll(up, { timeout: 20_000, interval: 200 })
      .toEqual(new Set(jobs.map((job) => ({ part_of: 'payloop', job, up: '1' }))));
  });

  test('accepts each expression', async () => {
    for (const [, query] of readExpressions(jobs)) {
      await expect(prometheus.get('query', { query })).resolves.toBeDefined();
    }
  });

  test('loads all alerts without an error', async () => {
    const { groups } = (await prometheus.get('rules')) as {
      groups: { rules: { name: string; lastError?: string }[] }[];
    };
    const rules = groups.flatMap((group) => group.rules);
    expect(rules.map(({ name }) => name)).toEqual(readAlerts().map(({ alert }) => alert));
    expect(rules.filter(({ lastError }) => lastError)).toEqual([]);
  });

  test('stores the trace id of a request as its exemplar', async () => {
    const now = Date.now() / 1_000;
    const exemplars = async () =>
      JSON.stringify(
        await prometheus.get('query_exemplars', {
          query: 'http_request_duration_seconds_bucket{route="/invoices/pay"}',
          start: `${now - 3_600}`,
          end: `${now + 3_600}`,
        }),
      );
    await expect.poll(exemplars, { timeout: 10_000 }).toContain(traceId);
  });
});

describe('alerts', () => {
  test.each(readAlerts())('$alert has a severity, an explanation and a runbook entry', (alert) => {
    expect(alert.for).toMatch(/^\d+m$/);
    expect(alert.labels?.severity).toMatch(/^(critical|warning)$/);
    expect(alert.annotations).toEqual({
      summary: expect.stringMatching(/.{10}/),
      description: expect.stringMatching(/First (look|check|find out) .+\.$/),
      runbook: `docs/runbook.md#${alert.alert.toLowerCase()}`,
    });
    const [, text = ''] = readRunbook().split(`\n## ${alert.alert}\n`);
    expect(text.split('\n## ')[0]).toMatch(/^\n[^]+\n- /);
  });

  test('each has a test that makes it fire, and one that keeps it silent', () => {
    const cases = readAlertCases();
    const wanted = readAlerts().flatMap(({ alert }) => [`${alert} fires`, `${alert} is silent`]);
    expect([...new Set(cases)].toSorted()).toEqual(wanted.toSorted());
  });

  test('the runbook covers exactly these alerts, and its links resolve', () => {
    const runbook = readRunbook();
    const headings = [...runbook.matchAll(/^## (.*)$/gm)].map(([, heading]) => heading!);
    expect(headings).toEqual(readAlerts().map(({ alert }) => alert));
    const anchors = new Set(headings.map((heading) => heading.toLowerCase()));
    for (const [, anchor] of runbook.matchAll(/\]\(#(.*?)\)/g)) expect(anchors).toContain(anchor);
  });
});

describe('the dashboard', () => {
  const { panels, templating } = readDashboard();
  const graphs = panels.filter(({ type }) => type !== 'row');

  test('uses each panel id once', () => {
    const ids = panels.map(({ id }) => id);
    expect(new Set(ids).size).toBe(ids.length);
  });

  test.each(graphs)('$title has an expression and a unit', ({ targets = [], fieldConfig }) => {
    expect(targets.length).toBeGreaterThan(0);
    for (const { expr } of targets) expect(expr).not.toBe('');
    expect(fieldConfig?.defaults.unit).toMatch(/\w/);
  });

  test('queries the selected data source', () => {
    expect(templating.list.find(({ type }) => type === 'datasource')?.name).toBe('datasource');
    const text = JSON.stringify(panels);
    const uids = new Set([...text.matchAll(/"uid":"(.*?)"/g)].map(([, uid]) => uid));
    expect([...uids]).toEqual(['${datasource}']);
  });

  test('has panels that neither overlap nor exceed the grid', () => {
    const cells = panels.flatMap(({ gridPos: { x, y, w, h } }) =>
      Array.from({ length: w * h }, (_, n) => `${x + (n % w)},${y + Math.floor(n / w)}`),
    );
    expect(new Set(cells).size).toBe(cells.length);
    expect(Math.max(...panels.map(({ gridPos: { x, w } }) => x + w))).toBe(24);
  });
});
