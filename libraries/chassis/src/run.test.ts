// @module-tag slow
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect, createServer, type AddressInfo } from 'node:net';
import { resolve } from 'node:path';
import { text } from 'node:stream/consumers';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { freePort } from '../../../local/ports.ts';
import { createDatabase, type TestDatabase } from '../../../tests/support/database.ts';
import { statusOf, untilReady } from '../../../tests/support/start-service.ts';
import { hashSource } from './source.ts';

const root = resolve(import.meta.dirname, '../../..');

let database: TestDatabase;
beforeAll(async () => {
  database = await createDatabase();
});
afterAll(() => database.drop());

/** Starts a service as its own process. Versions of Node before 24.3 warn about type stripping. */
function start(service: string, env: Record<string, string>) {
  const args = ['--disable-warning=ExperimentalWarning', `services/${service}/src/main.ts`];
  const child = spawn('node', args, {
    cwd: root,
    env: {
      PATH: process.env.PATH,
      HOST: '127.0.0.1',
      ENVIRONMENT: 'dev',
      METRICS_PORT: '0',
      DATABASE_URL: database.url,
      ...env,
    },
  });
  const ended = Promise.all([once(child, 'exit'), text(child.stdout), text(child.stderr)]).then(
    ([[code], stdout, stderr]) => ({ code, stdout, stderr }),
  );
  return { child, ended };
}

/** Starts a service on a free port, and waits until it is ready. */
async function startReady(service: string, env: Record<string, string> = {}) {
  const port = await freePort();
  const started = start(service, { PORT: `${port}`, ...env });
  await untilReady(`http://127.0.0.1:${port}`);
  return { port, ...started };
}

test.each([
  ['payment-provider', { FAILURE_RATE: '2' }, 'FAILURE_RATE must be a number from 0 to 1, not "2"'],
  [
    'invoice-app',
    { PAYMENT_PROVIDER_URL: 'payment-provider:8082/payments/pay' },
    'PAYMENT_PROVIDER_URL must be a full URL such as http://payment-provider:8082/payments/pay, not "payment-provider:8082/payments/pay"',
  ],
  [
    'invoice-app',
    { PAYMENT_PROVIDER_URL: 'http://a/', PAYMENT_PROVIDER_ENDPOINT: 'http://b/' },
    'PAYMENT_PROVIDER_URL must be the same as PAYMENT_PROVIDER_ENDPOINT where both are set',
  ],
  [
    'payment-provider',
    { ENVIRONMENT: 'prod', AUTH: '' },
    'AUTH must be required or off when ENVIRONMENT is prod',
  ],
  [
    'payment-provider',
    { ENVIRONMENT: '' },
    'AUTH must be required or off when ENVIRONMENT is unset (default: prod)',
  ],
  [
    'payment-provider',
    { AUTH: 'required' },
    'TOKEN_AUDIENCE must be set where AUTH is required: the audience that tokens are made for, such as payment-provider',
  ],
  [
    'invoice-app',
    { OTEL_EXPORTER_OTLP_ENDPOINT: 'otel-collector:4318' },
    'OTEL_EXPORTER_OTLP_ENDPOINT must be a full URL such as http://otel-collector.monitoring:4318, not "otel-collector:4318"',
  ],
])('%s exits with one line for %o', async (service, env: Record<string, string>, message) => {
  expect(await start(service, env).ended).toEqual({
    code: 1,
    stdout: '',
    stderr: `${service}: ${message}\n`,
  });
});

test('a service exits with one line that names the port in use', async () => {
  const taken = createServer().listen(0, '127.0.0.1');
  await once(taken, 'listening');
  const { port } = taken.address() as AddressInfo;
  const { code, stderr } = await start('invoice-app', { PORT: `${port}` }).ended;
  taken.close();
  expect([code, stderr]).toEqual([
    1,
    `invoice-app: cannot listen on PORT ${port}: another process uses it\n`,
  ]);
});

test('without its database, a service is live but not ready, and logs why once, without the password', async () => {
  const port = await freePort();
  const away = `postgres://invoice_app:verysecret@127.0.0.1:${await freePort()}/invoice_app`;
  const { child, ended } = start('invoice-app', { PORT: `${port}`, DATABASE_URL: away });
  const status = (path: string) => statusOf(`http://127.0.0.1:${port}${path}`);
  await expect.poll(() => status('/livez'), { timeout: 10_000 }).toBe(200);
  expect(await status('/startupz')).toBe(200);
  expect(await status('/readyz')).toBe(503);
  expect(await status('/invoices')).toBe(503);
  await new Promise((wait) => setTimeout(wait, 500));
  child.kill();
  const { code, stdout } = await ended;
  expect(code).toBe(0);
  expect(stdout.match(/not ready yet, retrying: connect ECONNREFUSED/g)).toHaveLength(1);
  expect(stdout).not.toContain('verysecret');
});

test('logs one line for each request, and no error, when clients disconnect before or during the response', async () => {
  const port = await freePort();
  const env = { PORT: `${port}`, METRICS_PORT: '0', SEED_INVOICES: '50000' };
  const { child, ended } = start('invoice-app', env);
  const url = `http://127.0.0.1:${port}`;
  await untilReady(url);
  for (const path of ['/invoices', '/rest/v1/invoices', '/progress']) {
    const socket = connect(port, '127.0.0.1');
    socket.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
    await once(socket, 'data');
    socket.destroy();
  }
  // Disconnects before any response.
  const early = connect(port, '127.0.0.1');
  await once(early, 'connect');
  early.write('GET /rest/v1/customers HTTP/1.1\r\nHost: localhost\r\n\r\n', () => early.destroy());
  await expect.poll(() => statusOf(`${url}/livez`)).toBe(200);
  await new Promise((wait) => setTimeout(wait, 500));
  child.kill();
  const { stdout, stderr } = await ended;
  expect(stderr).toBe('');
  const lines = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  expect(lines.filter(({ level }) => level !== 'info')).toEqual([]);
  const requests = lines.filter(({ msg }) => msg === 'request');
  expect(requests.map(({ path, status }) => [path, status])).toEqual(
    expect.arrayContaining([
      ['/invoices', 'client gone'],
      ['/rest/v1/invoices', 'client gone'],
    ]),
  );
  expect(requests).toHaveLength(4);
});

test('on SIGTERM, fails readiness at once, answers the request in flight, then exits', async () => {
  const { port, child, ended } = await startReady('payment-provider', { SHUTDOWN_DELAY_MS: '300' });

  const body = '{"id":"I1","value":1,"currency":"EUR"}';
  const slow = connect(port, '127.0.0.1');
  slow.write(
    `POST /payments/pay HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${body.length}\r\n\r\n${body.slice(0, 10)}`,
  );
  await new Promise((wait) => setTimeout(wait, 50));
  child.kill('SIGTERM');
  await expect.poll(async () => (await fetch(`http://127.0.0.1:${port}/readyz`)).status).toBe(503);
  // A signal may arrive twice, sent to the process and to its group.
  child.kill('SIGTERM');
  await new Promise((wait) => setTimeout(wait, 400));
  slow.write(body.slice(10));
  const answer = await text(slow);
  expect(answer).toContain('HTTP/1.1 200 OK');
  expect(answer).toContain('Connection: close');
  expect(await ended).toMatchObject({ code: 0, stderr: '' });
});

test('an idle process exits within 2 s of SIGTERM', async () => {
  const { child, ended } = await startReady('invoice-app');
  const before = performance.now();
  child.kill('SIGTERM');
  expect((await ended).code).toBe(0);
  expect(performance.now() - before).toBeLessThan(2_000);
});

test('a connection without a request delays the exit by about a second', async () => {
  const { port, child, ended } = await startReady('payment-provider');
  const unused = connect(port, '127.0.0.1').on('error', () => {});
  await once(unused, 'connect');
  const before = performance.now();
  child.kill('SIGTERM');
  expect((await ended).code).toBe(0);
  const took = performance.now() - before;
  expect(took).toBeGreaterThan(900);
  expect(took).toBeLessThan(4_000);
});

test('/version reports the hash of the running sources', async () => {
  const { port, child, ended } = await startReady('payment-provider');
  const version = await (await fetch(`http://127.0.0.1:${port}/version`)).json();
  expect(version).toEqual({
    service: 'payment-provider',
    source: hashSource(root, 'payment-provider'),
    instance: expect.stringMatching(/-[0-9a-f]{6}$/),
  });
  child.kill();
  await ended;
});

test('a log line contains the request id, but neither the body nor the token', async () => {
  const { port, child, ended } = await startReady('payment-provider');
  const response = await fetch(`http://127.0.0.1:${port}/payments/pay`, {
    method: 'POST',
    body: '{"id":"privacy","value":1,"currency":"EUR"}',
    headers: { 'X-Request-Id': 'abc-1', Authorization: 'Bearer verysecret' },
  });
  expect(response.headers.get('X-Request-Id')).toBe('abc-1');
  child.kill();
  const { stdout } = await ended;
  const lines = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  expect(lines).toContainEqual(
    expect.objectContaining({ requestId: 'abc-1', method: 'POST', path: '/payments/pay', status: 200 }),
  );
  expect(stdout).not.toMatch(/privacy|verysecret/);
});
