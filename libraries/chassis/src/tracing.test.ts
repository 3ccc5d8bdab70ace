// @module-tag slow
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { resolve } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { freePort } from '../../../local/ports.ts';
import { startCollector, type Collector, type SentSpan } from '../../../tests/signals/collector.ts';
import { createDatabase, type TestDatabase } from '../../../tests/support/database.ts';
import { post, untilReady } from '../../../tests/support/start-service.ts';

const root = resolve(import.meta.dirname, '../../..');
const openMetrics = 'application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5';

interface Process {
  url: string;
  metricsUrl: string;
  /** Sends SIGTERM. @returns the lines of its log, and how long it took to exit, in milliseconds */
  stop(): Promise<{ lines: Record<string, unknown>[]; ms: number }>;
}

/** All processes started, so that none outlives a failed test. */
const children: ChildProcess[] = [];
afterAll(() => {
  for (const child of children) child.kill('SIGKILL');
});

/** Starts a service as its own process, because the tracer is process-wide. */
async function start(
  service: string,
  database: TestDatabase,
  env: Record<string, string> = {},
): Promise<Process> {
  const [port, metricsPort] = [await freePort(), await freePort()];
  const child = spawn('node', [`services/${service}/src/main.ts`], {
    cwd: root,
    env: {
      PATH: process.env.PATH,
      HOST: '127.0.0.1',
      PORT: `${port}`,
      METRICS_PORT: `${metricsPort}`,
      ENVIRONMENT: 'dev',
      DATABASE_URL: database.url,
      ...env,
    },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  children.push(child);
  const output = text(child.stdout);
  const url = `http://127.0.0.1:${port}`;
  await untilReady(url);
  return {
    url,
    metricsUrl: `http://127.0.0.1:${metricsPort}/metrics`,
    async stop() {
      const ended = once(child, 'exit');
      const before = performance.now();
      child.kill('SIGTERM');
      expect(await ended).toEqual([0, null]);
      const ms = performance.now() - before;
      const lines = (await output).trim().split('\n');
      return { lines: lines.map((line) => JSON.parse(line)), ms };
    },
  };
}

let databases: Record<'app' | 'provider', TestDatabase>;
beforeAll(async () => {
  databases = { app: await createDatabase(), provider: await createDatabase() };
});
afterAll(async () => {
  await databases.app.drop();
  await databases.provider.drop();
});

/** Starts both services, which send their spans to `endpoint`. */
async function startBoth(endpoint: string, own: Record<string, string> = {}) {
  const env = { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, ALLOW_RESET: 'true', ...own };
  const provider = await start('payment-provider', databases.provider, env);
  const app = await start('invoice-app', databases.app, {
    ...env,
    PAYMENT_PROVIDER_URL: `${provider.url}/payments/pay`,
  });
  await post(`${app.url}/reset`);
  return { app, provider };
}

/** Locks a table until all requests have arrived. @returns their responses */
async function whileLocked(
  database: TestDatabase,
  table: string,
  send: () => Promise<Response>[],
): Promise<Response[]> {
  const client = new Client({ connectionString: database.url });
  await client.connect();
  await client.query(`BEGIN; LOCK TABLE ${table}`);
  const responses = send();
  await sleep(500);
  await client.end();
  return Promise.all(responses);
}

/** The names of the spans from this one up to the root of its trace. */
function upwards(span: SentSpan | undefined, spans: SentSpan[]): string[] {
  if (span === undefined) return [];
  const parent = spans.find(({ spanId }) => spanId === span.parentSpanId);
  return [`${span.service}: ${span.name}`, ...upwards(parent, spans)];
}

async function exemplarsOf(metricsUrl: string, traceId: string): Promise<string[]> {
  const response = await fetch(metricsUrl, { headers: { Accept: openMetrics } });
  expect(response.headers.get('Content-Type')).toContain('application/openmetrics-text');
  const lines = (await response.text()).split('\n');
  return lines
    .filter((line) => line.includes(`# {trace_id="${traceId}"`))
    .map((line) => /^\w+/.exec(line)![0]);
}

describe('one payment', () => {
  let collector: Collector;
  let traceId: string;
  let answer: Response;
  let exemplars: { app: string[]; provider: string[] };
  let lines: Record<string, unknown>[];
  beforeAll(async () => {
    collector = await startCollector();
    const { app, provider } = await startBoth(collector.url);
    answer = await fetch(`${app.url}/invoices/pay`, { method: 'POST' });
    traceId = answer.headers.get('X-Request-Id') ?? '';
    exemplars = {
      app: await exemplarsOf(app.metricsUrl, traceId),
      provider: await exemplarsOf(provider.metricsUrl, traceId),
    };
    lines = [...(await app.stop()).lines, ...(await provider.stop()).lines];
  });
  afterAll(() => collector.close());

  test('the response contains the trace id', () => {
    expect(answer.status).toBe(200);
    expect(traceId).toMatch(/^[0-9a-f]{32}$/);
    expect(answer.headers.get('Server-Timing')).toMatch(
      new RegExp(`^traceparent;desc="00-${traceId}-[0-9a-f]{16}-01"$`),
    );
  });

  test('log lines of both services carry the trace id', () => {
    const found = lines.filter((line) => line.trace_id === traceId);
    expect(found).toEqual([
      expect.objectContaining({ service: 'invoice-app', path: '/invoices/pay', requestId: traceId }),
      expect.objectContaining({ service: 'payment-provider', path: '/payments/pay', requestId: traceId }),
    ]);
    const ids = new Set(collector.spans.map(({ spanId }) => spanId));
    for (const { span_id: id } of found) expect(ids).toContain(id);
  });

  test('one trace contains the spans of both services, from the pay request to the write in the ledger', () => {
    const spans = collector.spans.filter((span) => span.traceId === traceId);
    const store = spans.find(({ name }) => name === 'store');
    expect(upwards(store, spans)).toEqual([
      'payment-provider: store',
      'payment-provider: charge',
      'payment-provider: POST /payments/pay',
      'invoice-app: post',
      'invoice-app: batch',
      'invoice-app: run',
      'invoice-app: POST /invoices/pay',
    ]);
    const names = spans.map(({ name }) => name);
    expect(names).toEqual(expect.arrayContaining(['find unpaid', 'claim', 'record', 'release']));
    expect(spans.find(({ name }) => name === 'post')).toMatchObject({
      kind: 3,
      attributes: { 'payloop.payments': 3 },
    });
    expect(spans.find(({ name }) => name === 'POST /payments/pay')).toMatchObject({
      kind: 2,
      attributes: { 'http.response.status_code': 200, 'http.route': '/payments/pay' },
    });
  });

  test('metrics of both services have exemplars with the trace id', () => {
    expect(exemplars.app).toEqual(
      expect.arrayContaining(['http_request_duration_seconds_bucket', 'payments_total']),
    );
    expect(exemplars.provider).toEqual(
      expect.arrayContaining(['http_request_duration_seconds_bucket', 'charges_total']),
    );
  });

  test('recovery that finds nothing creates no spans', () => {
    expect(collector.spans.filter(({ name }) => name === 'find expired' || name === 'pause')).toEqual([]);
  });
});

test('continues the trace of the caller and keeps the caller’s request id', async () => {
  const collector = await startCollector();
  const { app, provider } = await startBoth(collector.url);
  const traceId = '0af7651916cd43dd8448eb211c80319c';
  const traceparent = `00-${traceId}-b7ad6b7169203331-01`;
  const headers = { traceparent, 'X-Request-Id': 'mine', Authorization: 'Bearer verysecret' };
  const answer = await fetch(`${app.url}/invoices/pay`, { method: 'POST', headers });
  expect(answer.headers.get('X-Request-Id')).toBe('mine');
  const unsampled = { traceparent: traceparent.replace('0af7', 'ffff').replace(/01$/, '00') };
  await fetch(`${app.url}/invoices/pay`, { method: 'POST', headers: unsampled });
  expect(await exemplarsOf(app.metricsUrl, traceId.replace('0af7', 'ffff'))).toEqual([]);
  await app.stop();
  await provider.stop();
  collector.close();
  const requests = collector.spans.filter(({ kind, traceId: id }) => kind === 2 && id === traceId);
  expect(requests.map(({ service }) => service).toSorted()).toEqual(['invoice-app', 'payment-provider']);
  expect(requests.find(({ service }) => service === 'invoice-app')?.parentSpanId).toBe('b7ad6b7169203331');
  expect(collector.spans.filter(({ traceId: id }) => id.startsWith('ffff'))).toEqual([]);
  expect(JSON.stringify(collector.spans)).not.toContain('verysecret');
});

test('links a payment run to all requests that share it, and a statement to all charges that it stores', async () => {
  const collector = await startCollector();
  const { app, provider } = await startBoth(collector.url);
  // The lock lasts until all requests have arrived. The first gets its own run, the others share the next.
  const payAll = await whileLocked(databases.app, 'batches', () =>
    Array.from({ length: 3 }, () => fetch(`${app.url}/invoices/pay`, { method: 'POST' })),
  );
  const payIds = payAll.map((answer) => answer.headers.get('X-Request-Id')!);
  const charges = await whileLocked(databases.provider, 'payments', () =>
    Array.from({ length: 12 }, (_, n) =>
      fetch(`${provider.url}/payments/pay`, {
        method: 'POST',
        body: JSON.stringify({ id: `${n}`, value: 1, currency: 'EUR' }),
      }),
    ),
  );
  const chargeIds = charges.map((answer) => answer.headers.get('X-Request-Id')!);
  await app.stop();
  await provider.stop();
  collector.close();
  const numberOf = (name: string) => collector.spans.filter((span) => span.name === name).length;
  expect(numberOf('run')).toBe(2);
  // Once the maximum number of statements is in flight, all further charges share the next one.
  expect(numberOf('store')).toBeLessThan(12);
  /** Whether a request's trace, or one that it links to, has a span of this name. */
  const leadsTo = (name: string, traceId: string) => {
    const withName = new Set(
      collector.spans.filter((span) => span.name === name).map((span) => span.traceId),
    );
    const linked = collector.spans.filter((span) => span.traceId === traceId).flatMap(({ links }) => links);
    return [traceId, ...linked].some((id) => withName.has(id));
  };
  for (const id of payIds) expect(leadsTo('run', id)).toBe(true);
  for (const id of chargeIds) expect(leadsTo('store', id)).toBe(true);
});

test.each([
  ['that never responds', () => startCollector({ silent: true })],
  ['that is not running', async () => ({ url: `http://127.0.0.1:${await freePort()}`, close: () => {} })],
])('a collector %s neither fails a payment nor delays the exit', async (_name, make) => {
  const collector = await make();
  const { app, provider } = await startBoth(collector.url);
  expect(await post(`${app.url}/invoices/pay`)).toEqual({ status: 200, body: {} });
  const ended = [await app.stop(), await provider.stop()];
  collector.close();
  for (const { ms } of ended) expect(ms).toBeLessThan(2_000);
});

test('logs once that spans were not sent', async () => {
  const collector = await startCollector();
  collector.close();
  const provider = await start('payment-provider', databases.provider, {
    OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
    OTEL_EXPORTER_OTLP_TIMEOUT: '100',
  });
  await fetch(`${provider.url}/nothing`);
  const { lines } = await provider.stop();
  const said = lines.filter(({ msg }) => String(msg).startsWith('traces: '));
  expect(said).toEqual([
    expect.objectContaining({ level: 'warn', msg: expect.stringContaining('ECONNREFUSED') }),
  ]);
});

test('with tracing off, only prom-client loads OpenTelemetry, and nothing has trace ids', async () => {
  const { app, provider } = await startBoth('', {
    NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(
      `import { registerHooks } from 'node:module';
       registerHooks({ resolve: (name, context, next) => {
         if (/@opentelemetry\\/(?!api$)|otel\\.ts/.test(name)) throw new Error('loaded ' + name);
         return next(name, context);
       } });`,
    )}`,
  });
  const answer = await fetch(`${app.url}/invoices/pay`, { method: 'POST' });
  expect(answer.status).toBe(200);
  expect(answer.headers.has('Server-Timing')).toBe(false);
  const response = await fetch(app.metricsUrl, { headers: { Accept: openMetrics } });
  expect(await response.text()).not.toContain('trace_id');
  const { lines } = await app.stop();
  await provider.stop();
  expect(lines.find(({ path }) => path === '/invoices/pay')).not.toHaveProperty('trace_id');
});
