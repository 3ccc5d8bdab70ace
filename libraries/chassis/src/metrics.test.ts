import { Client } from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { freePort } from '../../../local/ports.ts';
import * as invoiceApp from '../../../services/invoice-app/src/service.ts';
import * as paymentProvider from '../../../services/payment-provider/src/service.ts';
import {
  ask,
  post,
  startService,
  startUnready,
  type RunningService,
} from '../../../tests/support/start-service.ts';

let provider: RunningService;
let app: RunningService;
beforeAll(async () => {
  provider = await startService(paymentProvider, { ALLOW_RESET: 'true' });
  app = await startService(invoiceApp, { PAYMENT_PROVIDER_URL: `${provider.url}/payments/pay` });
});
afterAll(async () => {
  await app[Symbol.asyncDispose]();
  await provider[Symbol.asyncDispose]();
});

/** The value of each metric, by its name and labels. */
async function scrape(url: string): Promise<Map<string, number>> {
  const response = await fetch(url);
  expect(response.status).toBe(200);
  expect(response.headers.get('Content-Type')).toBe('text/plain; version=0.0.4; charset=utf-8');
  const lines = (await response.text()).split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  const samples = lines.map((line) => /^(\w+(?:\{.*\})?) (\S+)$/.exec(line)!);
  return new Map(samples.map(([, name, value]) => [name!, Number(value)]));
}

/** The request counts of the histogram, by method, route and status. */
const requestCounts = (metrics: Map<string, number>) =>
  Object.fromEntries(
    [...metrics].flatMap(([name, value]) => {
      const [, labels] = /^http_request_duration_seconds_count\{(.*)\}$/.exec(name) ?? [];
      return labels === undefined ? [] : [[labels.replaceAll(/\w+="(.*?)",?/g, '$1 ').trim(), value]];
    }),
  );

async function inDatabase(service: RunningService, statement: string): Promise<void> {
  const client = new Client({ connectionString: service.databaseUrl });
  await client.connect();
  await client.query(statement);
  await client.end();
}

test('counts payments by outcome and reports the number of unpaid invoices', async () => {
  const before = await scrape(app.metricsUrl);
  expect(before.get('unpaid_invoices')).toBe(3);
  expect(before.get('payments_total{outcome="charged"}')).toBe(0);
  await post(`${app.url}/invoices/pay`);
  const after = await scrape(app.metricsUrl);
  expect(after.get('unpaid_invoices')).toBe(0);
  expect(after.get('payments_total{outcome="charged"}')).toBe(3);
  expect(after.get('payments_total{outcome="unknown"}')).toBe(0);

  const payment = '{"id":"I1","value":1,"currency":"EUR"}';
  const pay = (body: string) => post(`${provider.url}/payments/pay`, body, { 'Idempotency-Key': 'one' });
  await pay(payment);
  await pay(payment);
  await pay(payment.replace('1,', '2,'));
  const charges = await scrape(provider.metricsUrl);
  expect([...charges].filter(([name]) => name.startsWith('charges_total'))).toEqual([
    ['charges_total{outcome="charged"}', 4],
    ['charges_total{outcome="declined"}', 0],
    ['charges_total{outcome="repeated"}', 1],
    ['charges_total{outcome="mismatch"}', 1],
    ['charges_total{outcome="busy"}', 0],
    ['charges_total{outcome="retired"}', 0],
  ]);
});

test('counts declined payments, and each attempt with an unknown outcome, retries included', async () => {
  await using declining = await startService(paymentProvider, { FAILURE_RATE: '1' });
  await using unlucky = await startService(invoiceApp, {
    PAYMENT_PROVIDER_URL: `${declining.url}/payments/pay`,
  });
  await post(`${unlucky.url}/invoices/pay`);
  await declining.stop();
  await post(`${unlucky.url}/invoices/pay`);
  const metrics = await scrape(unlucky.metricsUrl);
  expect(metrics.get('payments_total{outcome="declined"}')).toBe(3);
  // Three invoices, each sent four times.
  expect(metrics.get('payments_total{outcome="unknown"}')).toBe(12);
  expect(await scrape(declining.metricsUrl).catch(() => 'closed')).toBe('closed');
});

test('counts requests by route pattern, without probes', async () => {
  await using fresh = await startService(paymentProvider);
  await ask(`${fresh.url}/livez`);
  await ask(`${fresh.url}/version`);
  await ask(`${fresh.url}/VERSION/?x=1`);
  await ask(`${fresh.url}/payments/pay`);
  await post(`${fresh.url}/payments/pay`, '{');
  for (let n = 0; n < 5; n += 1) await ask(`${fresh.url}/${n}`);
  const metrics = await scrape(fresh.metricsUrl);
  expect(requestCounts(metrics)).toEqual({
    'GET /version 200': 2,
    'GET /payments/pay 405': 1,
    'POST /payments/pay 400': 1,
    'GET none 404': 5,
  });
  const bucket = 'http_request_duration_seconds_bucket{le="60",method="GET",route="none",status="404"}';
  expect(metrics.get(bucket)).toBe(5);
});

test('reports the seconds since the oldest lease was renewed', async () => {
  expect((await scrape(app.metricsUrl)).get('oldest_lease_age_seconds')).toBe(0);
  await inDatabase(app, `UPDATE batches SET holder = 'dead', leased_until = now() + interval '10 s'`);
  const age = (await scrape(app.metricsUrl)).get('oldest_lease_age_seconds');
  expect(age).toBeGreaterThanOrEqual(5);
  expect(age).toBeLessThan(15);
});

test('counts batches claimed, with abandoned ones apart', async () => {
  const claims = async () => {
    const metrics = await scrape(app.metricsUrl);
    return ['free', 'abandoned'].map((state) => metrics.get(`batch_claims_total{found="${state}"}`));
  };
  const [free, abandoned] = await claims();
  await inDatabase(app, `UPDATE batches SET holder = 'dead', leased_until = now()`);
  // Recovery polls every few seconds.
  await expect.poll(claims, { timeout: 10_000 }).toEqual([free, abandoned! + 1]);
});

test('reports the pool, the event loop and the memory', async () => {
  const metrics = await scrape(app.metricsUrl);
  expect(metrics.get('database_connections')).toBeGreaterThanOrEqual(1);
  expect(metrics.get('database_connections_max')).toBe(10);
  expect(metrics.get('database_connections_idle')).toBeGreaterThanOrEqual(0);
  expect(metrics.get('database_waiting')).toBe(0);
  // The event loop is measured only after the first scrape.
  await expect
    .poll(async () => (await scrape(app.metricsUrl)).get('nodejs_eventloop_lag_p99_seconds'))
    .toBeGreaterThan(0);
  expect(metrics.get('process_resident_memory_bytes')).toBeGreaterThan(1_000_000);
});

const start = (env: Record<string, string>) =>
  startUnready(invoiceApp, { DATABASE_URL: app.databaseUrl, ...env });

test('omits metrics that come from the database when it is unavailable, and keeps the others', async () => {
  const running = await startUnready(invoiceApp);
  const metrics = await scrape(running.metricsUrl);
  expect(metrics.has('unpaid_invoices')).toBe(false);
  expect(metrics.has('oldest_lease_age_seconds')).toBe(false);
  expect(metrics.get('payments_total{outcome="charged"}')).toBe(0);
  await running.stop();
});

test('serves OpenMetrics on request, at the same time as the Prometheus format', async () => {
  const read = async (accept: string) =>
    (await fetch(app.metricsUrl, { headers: { Accept: accept } })).text();
  const [open, plain] = await Promise.all([read('application/openmetrics-text;version=1.0.0'), read('*/*')]);
  expect(open).toMatch(/^# TYPE payments counter\npayments_total\{/m);
  expect(open).toMatch(/\n# EOF\n$/);
  expect(open.match(/# EOF/g)).toHaveLength(1);
  expect(plain).toMatch(/^# TYPE payments_total counter\npayments_total\{/m);
  expect(plain).not.toContain('# EOF');
  expect(await read('*/*')).toMatch(/^process_cpu_seconds_total /m);
});

test('the metrics port serves only /metrics', async () => {
  expect((await fetch(new URL('/', app.metricsUrl))).status).toBe(404);
  expect((await fetch(`${app.url}/metrics`)).status).toBe(404);
});

test('a start fails if the metrics port is in use', async () => {
  const { port } = new URL(app.metricsUrl);
  await expect(start({ METRICS_PORT: port })).rejects.toThrow(
    `cannot listen on METRICS_PORT ${port}: another process uses it`,
  );
});

test.each([
  [
    'equals PORT',
    () => freePort().then((port) => ({ PORT: `${port}`, METRICS_PORT: `${port}` })),
    /^METRICS_PORT must differ from PORT \(\d+\)$/,
  ],
  [
    'is out of range',
    () => ({ METRICS_PORT: '70000' }),
    /^METRICS_PORT must be a whole number from 0 to 65535, not "70000"$/,
  ],
])(
  'a start fails if the metrics port %s',
  async (_name, env: () => Record<string, string> | Promise<Record<string, string>>, message) => {
    await expect(start(await env())).rejects.toThrow(
      expect.objectContaining({ name: 'ConfigError', message: expect.stringMatching(message) }),
    );
  },
);
