import { request as send } from 'node:http';
import { buffer } from 'node:stream/consumers';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { brokenRules } from '../../../tests/payments/rules.ts';
import { ask, listen, post, type RunningService } from '../../../tests/support/start-service.ts';
import { connect, startApp, startProvider } from '../../../tests/support/app-and-provider.ts';

/** Starts a proxy in front of the provider that can delay requests and answers. */
async function startProxy(provider: RunningService) {
  const proxy = {
    /** Awaited before a request is passed on to the provider. */
    beforeRequest: async (_path: string) => {},
    /** Awaited before an answer is passed back. */
    beforeAnswer: async (_path: string) => {},
    answered: [] as [path: string, status: number][],
  };
  const server = await listen(async (request, response) => {
    const { method, url = '', headers } = request;
    const body = await buffer(request);
    await proxy.beforeRequest(url);
    const onward = send(provider.url + url, { method, headers, agent: false }, (answer) => {
      const pass = async () => {
        const text = await buffer(answer);
        proxy.answered.push([url, answer.statusCode ?? 0]);
        await proxy.beforeAnswer(url);
        response.writeHead(answer.statusCode ?? 500, answer.headers).end(text);
      };
      pass().catch(() => response.destroy());
    });
    onward.on('error', () => response.destroy());
    onward.end(body);
  });
  return Object.assign(proxy, server);
}

let provider: RunningService;
let proxy: Awaited<ReturnType<typeof startProxy>>;
let app: RunningService;
beforeEach(async () => {
  provider = await startProvider();
  proxy = await startProxy(provider);
  app = await startApp(proxy);
});
afterEach(async () => {
  await app[Symbol.asyncDispose]();
  await proxy[Symbol.asyncDispose]();
  await provider[Symbol.asyncDispose]();
});

const pay = () => post(`${app.url}/invoices/pay`);
const reset = (service = app) => post(`${service.url}/reset`);
const done = { status: 200, body: {} };
const unpaid = async () => ((await ask(`${app.url}/invoices?status=unpaid`)).body as unknown[]).length;

async function charges(): Promise<number> {
  await using ledger = await connect(provider);
  return (await ledger.query('SELECT FROM payments')).rows.length;
}
async function broken(): Promise<string[]> {
  await using database = await connect(app);
  await using ledger = await connect(provider);
  return await brokenRules({ app: database, provider: ledger });
}

test.each(['invoices', 'batches', 'payment_events', 'customers'])(
  'an open transaction that has read %s blocks the reset, and the error names its session',
  { timeout: 30_000, tags: ['slow'] },
  async (table) => {
    await pay();
    await using reader = await connect(app);
    await reader.query(`SET application_name = 'psql'; BEGIN; SELECT * FROM ${table}`);
    const { status, body } = await reset();
    expect(status).toBe(503);
    expect((body as { error: string }).error).toMatch(
      /^nothing was reset: .* process \d+ of \w+ \(psql\)\. End it/,
    );
    expect([await unpaid(), await charges()]).toEqual([0, 3]);
    expect(await broken()).toEqual([]);
    await reader.query('COMMIT');
    expect(await reset()).toEqual(done);
    expect([await unpaid(), await charges()]).toEqual([3, 0]);
    expect(await pay()).toEqual(done);
    expect(await broken()).toEqual([]);
  },
);

test('a payment that reaches the provider after a reset charges nothing', async () => {
  const arrived = Promise.withResolvers<void>();
  const released = Promise.withResolvers<void>();
  let held = 0;
  proxy.beforeRequest = async (path) => {
    if (path !== '/payments/pay' || held++ > 0) return;
    arrived.resolve();
    await released.promise;
  };
  const paying = pay();
  await arrived.promise;
  await using database = await connect(app);
  // Its holder has lost the lease.
  await database.query(`UPDATE batches SET holder = 'gone', leased_until = now() - interval '1 s'`);
  await using direct = await startApp(provider, { DATABASE_URL: app.databaseUrl }, { instance: 'direct' });
  expect(await reset(direct)).toEqual(done);
  released.resolve();
  await expect.poll(() => proxy.answered).toContainEqual(['/payments/pay', 410]);
  expect(await charges()).toBeLessThanOrEqual(3);
  await paying;
  await post(`${direct.url}/invoices/pay`);
  expect([await unpaid(), await charges()]).toEqual([0, 3]);
  expect(await broken()).toEqual([]);
});

test('recovery finishes a reset that the provider answers late', { timeout: 30_000 }, async () => {
  await pay();
  let late = true;
  proxy.beforeAnswer = async (path) => {
    if (path === '/reset' && late) await new Promise((resolve) => setTimeout(resolve, 2_500));
  };
  const { status, body } = await reset();
  expect(status).toBe(502);
  expect((body as { error: string }).error).toMatch(
    /^it is unknown whether the payment provider was reset: /,
  );
  // Until the reset is finished, no payment is charged.
  await using database = await connect(app);
  await database.query(`INSERT INTO invoices (id, customer_id, amount, currency) VALUES (4, 1, 5, 'EUR')`);
  const paying = pay();
  await new Promise((resolve) => setTimeout(resolve, 500));
  expect(await charges()).toBe(0);
  late = false;
  expect((await paying).status).toBe(200);
  expect([await unpaid(), await charges()]).toEqual([0, 3]);
  expect(await broken()).toEqual([]);
});

test(
  'a reset that reaches the provider late, after its retry, keeps the charges made since',
  { timeout: 30_000 },
  async () => {
    await pay();
    const released = Promise.withResolvers<void>();
    let resets = 0;
    proxy.beforeRequest = async (path) => {
      if (path === '/reset' && resets++ === 0) await released.promise;
    };
    expect((await reset()).status).toBe(502);
    expect(await reset()).toEqual(done);
    expect(await pay()).toEqual(done);
    released.resolve();
    await expect.poll(() => proxy.answered.filter(([path]) => path === '/reset')).toHaveLength(2);
    expect([await unpaid(), await charges()]).toEqual([0, 3]);
    expect(await broken()).toEqual([]);
  },
);

test('a reset is cancelled if the provider is unreachable, and payments continue', async () => {
  await pay();
  await using alone = await startApp({ url: 'http://127.0.0.1:1' }, { DATABASE_URL: app.databaseUrl });
  const { status, body } = await reset(alone);
  expect(status).toBe(502);
  expect((body as { error: string }).error).toMatch(/^the payment provider was not reset: .*ECONNREFUSED/);
  await using database = await connect(app);
  await database.query(`INSERT INTO invoices (id, customer_id, amount, currency) VALUES (4, 1, 5, 'EUR')`);
  expect(await pay()).toEqual(done);
  expect([await unpaid(), await charges()]).toEqual([0, 4]);
  expect(await broken()).toEqual([]);
});

test('resets at the same time count as one', async () => {
  await pay();
  await using other = await startApp(proxy, { DATABASE_URL: app.databaseUrl }, { instance: 'other' });
  let atProvider = 0;
  const all = Promise.withResolvers<void>();
  proxy.beforeRequest = async (path) => {
    if (path !== '/reset') return;
    atProvider += 1;
    if (atProvider === 3) all.resolve();
    await all.promise;
  };
  const answers = await Promise.all([reset(), reset(other), reset()]);
  expect(answers).toEqual([done, done, done]);
  await using ledger = await connect(provider);
  expect((await ledger.query('SELECT FROM retired_epochs')).rowCount).toBe(1);
  expect([await unpaid(), await charges()]).toEqual([3, 0]);
  expect(await pay()).toEqual(done);
  expect(await broken()).toEqual([]);
});
