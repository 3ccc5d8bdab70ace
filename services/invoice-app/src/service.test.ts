import type { RequestListener } from 'node:http';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import * as paymentProvider from '../../payment-provider/src/service.ts';
import { EventStream } from '../../../tests/support/events.ts';
import {
  ask,
  listen,
  post,
  startService,
  type RunningService,
} from '../../../tests/support/start-service.ts';
import { connect, startApp, startProvider } from '../../../tests/support/app-and-provider.ts';
import * as invoiceApp from './service.ts';

const seeded = [
  { InvoiceId: 'I1', Value: 12.15, Currency: 'EUR', IsPaid: false },
  { InvoiceId: 'I2', Value: 10.25, Currency: 'GBP', IsPaid: false },
  { InvoiceId: 'I3', Value: 66.13, Currency: 'DKK', IsPaid: false },
];
const allPaid = seeded.map((invoice) => ({ ...invoice, IsPaid: true }));

const invoicesOf = async (app: RunningService, query = '') => (await ask(`${app.url}/invoices${query}`)).body;

let provider: RunningService;
let app: RunningService;
beforeAll(async () => {
  provider = await startProvider();
  app = await startApp(provider);
});
beforeEach(() => post(`${app.url}/reset`));
afterAll(async () => {
  await app[Symbol.asyncDispose]();
  await provider[Symbol.asyncDispose]();
});

/** Returns the charges of the provider as text, in the order of the invoices. */
async function charges(service: RunningService): Promise<string[]> {
  await using database = await connect(service);
  const { rows } = await database.query(
    `SELECT payment_id || ' ' || amount || ' ' || currency AS charge FROM payments WHERE outcome = 'charged'
     ORDER BY length(payment_id), payment_id`,
  );
  return rows.map(({ charge }) => charge);
}

describe('GET /invoices', () => {
  test('returns the original invoices with the original field names', async () => {
    const response = await fetch(`${app.url}/invoices`);
    expect(response.headers.get('Content-Type')).toBe('application/json; charset=utf-8');
    expect(await response.text()).toBe(JSON.stringify(seeded));
  });

  test('filters by status, limit and after', async () => {
    expect(await invoicesOf(app, '?status=paid')).toEqual([]);
    expect(await invoicesOf(app, '?status=unpaid&limit=1&after=I1')).toEqual([seeded[1]]);
    expect(await invoicesOf(app, '?after=I3')).toEqual([]);
  });

  test.each([
    ['status=open', 'status must be paid or unpaid, not "open"'],
    ['limit=0', 'limit must be a whole number from 1 to 1000000, not "0"'],
    ['limit=many', 'limit must be a whole number from 1 to 1000000, not "many"'],
    ['after=1', 'after must be the id of an invoice, such as I1, not "1"'],
  ])('refuses ?%s', async (query, error) => {
    expect(await ask(`${app.url}/invoices?${query}`)).toEqual({ status: 400, body: { error } });
  });

  test('streams several pages in id order, each invoice once', async () => {
    await using large = await startApp(provider, { SEED_INVOICES: '2500' });
    const invoices = (await invoicesOf(large)) as typeof seeded;
    expect(invoices.map(({ InvoiceId }) => InvoiceId)).toEqual(
      Array.from({ length: 2500 }, (_, n) => `I${n + 1}`),
    );
    expect(invoices.slice(0, 3)).toEqual(seeded);
    expect(((await invoicesOf(large, '?limit=1700&after=I200')) as unknown[]).length).toBe(1700);
  });

  test('returns an empty array if there are no invoices', async () => {
    await using empty = await startApp(provider, { SEED_INVOICES: '0' });
    expect(await ask(`${empty.url}/invoices`)).toEqual({ status: 200, body: [] });
  });
});

describe('POST /invoices/pay', () => {
  test('pays every invoice once, with its amount and currency', async () => {
    expect(await post(`${app.url}/invoices/pay`)).toEqual({ status: 200, body: {} });
    expect(await invoicesOf(app)).toEqual(allPaid);
    expect(await post(`${app.url}/invoices/pay`)).toEqual({ status: 200, body: {} });
    expect(await charges(provider)).toEqual(['I1 1215 EUR', 'I2 1025 GBP', 'I3 6613 DKK']);
  });

  test.each([
    ['no body', '', {}],
    ['a form', '{}', { 'Content-Type': 'application/x-www-form-urlencoded' }],
    ['broken JSON', '{"id":', { 'Content-Type': 'application/json' }],
    ['a large body', 'x'.repeat(2_000_000), {}],
    ['an unknown encoding', 'x', { 'Content-Encoding': 'nonsense' }],
  ])('pays without reading the body: %s', async (_name, body, headers: Record<string, string>) => {
    expect(await post(`${app.url}/invoices/pay`, body, headers)).toEqual({ status: 200, body: {} });
    expect(await invoicesOf(app)).toEqual(allPaid);
  });

  test('takes the URL of the provider from PAYMENT_PROVIDER_ENDPOINT too', async () => {
    await using own = await startService(invoiceApp, {
      PAYMENT_PROVIDER_ENDPOINT: `${provider.url}/payments/pay`,
    });
    expect(await post(`${own.url}/invoices/pay`)).toEqual({ status: 200, body: {} });
    expect(await invoicesOf(own)).toEqual(allPaid);
  });

  test('pays an invoice added by SQL, however high its number', async () => {
    await using own = await startApp(provider);
    await using database = await connect(own);
    await database.query(
      `INSERT INTO invoices (id, customer_id, amount, currency) VALUES (7000, 2, 1, 'EUR')`,
    );
    expect(await post(`${own.url}/invoices/pay`)).toEqual({ status: 200, body: {} });
    expect(await invoicesOf(own, '?status=unpaid')).toEqual([]);
    expect(await invoicesOf(own, '?after=I3')).toMatchObject([{ InvoiceId: 'I7000' }]);
  });

  test('charges each invoice once when two replicas pay at the same time', async () => {
    await using one = await startApp(provider, { SEED_INVOICES: '100' });
    await using other = await startApp(provider, { DATABASE_URL: one.databaseUrl });
    const answers = await Promise.all([one, one, other, other].map(({ url }) => post(`${url}/invoices/pay`)));
    expect(answers).toEqual(Array.from({ length: 4 }, () => ({ status: 200, body: {} })));
    expect(await charges(provider)).toHaveLength(100);
    expect(await invoicesOf(other, '?status=unpaid')).toEqual([]);
  });

  test('gets 200 if invoices are declined, and they stay unpaid', async () => {
    await using declining = await startService(paymentProvider, { FAILURE_RATE: '1' });
    await using unlucky = await startApp(declining);
    expect(await post(`${unlucky.url}/invoices/pay`)).toEqual({ status: 200, body: {} });
    expect(await invoicesOf(unlucky)).toEqual(seeded);
    expect(await charges(declining)).toEqual([]);
  });
});

describe('an unreliable provider leaves invoices unpaid, and pay reports how many', () => {
  const error = 'the payment provider gave no definite answer';

  test('down', async () => {
    await using alone = await startApp({ url: 'http://127.0.0.1:1' });
    expect(await post(`${alone.url}/invoices/pay`)).toEqual({
      status: 502,
      body: { error, paid: 0, declined: 0, refused: 0, unknown: 3 },
    });
    expect(await invoicesOf(alone)).toEqual(seeded);
  });

  test('down, with two batches', async () => {
    await using alone = await startApp({ url: 'http://127.0.0.1:1' }, { SEED_INVOICES: '2000' });
    expect((await post(`${alone.url}/invoices/pay`)).body).toMatchObject({ unknown: 2000 });
  });

  test.each<[string, RequestListener]>([
    ['slower than the timeout', () => {}],
    [
      'a wrong id',
      (_request, response) => response.setHeader('Content-Type', 'application/json').end('{"id":"I9"}'),
    ],
    ['no JSON', (_request, response) => response.end('<html>')],
    ['an empty answer', (_request, response) => response.end()],
    ['500', (_request, response) => response.writeHead(500).end('{"id":"I1"}')],
    [
      'a redirect',
      ({ url }, response) =>
        url === '/elsewhere'
          ? response.setHeader('Content-Type', 'application/json').end('{"id":"I1"}')
          : response.writeHead(302, { Location: '/elsewhere' }).end(),
    ],
    [
      'an endless answer',
      (_request, response) => void setInterval(() => response.write('x'.repeat(9_000)), 1).unref(),
    ],
    ['a reset connection', (request) => request.socket.resetAndDestroy()],
    [
      'a truncated answer',
      (request, response) =>
        response.writeHead(200, { 'Content-Length': 9 }).write('{', () => request.socket.destroy()),
    ],
  ])('%s', { timeout: 20_000 }, async (_name, answer) => {
    await using server = await listen(answer);
    await using unlucky = await startApp(server);
    expect(await post(`${unlucky.url}/invoices/pay`)).toEqual({
      status: 502,
      body: { error, paid: 0, declined: 0, refused: 0, unknown: 3 },
    });
    expect(await invoicesOf(unlucky)).toEqual(seeded);
  });
});

describe('the database rejects values that the code could not tell apart', () => {
  test.each([
    ['an id that a double cannot hold', 'id = 9007199254740993', 'id_has_15_digits'],
    ['an id of 16 digits', 'id = 1000000000000000', 'id_has_15_digits'],
    ['an amount that a double cannot hold', 'amount = 7036874417766401', 'amount_has_15_digits'],
    ['a negative amount of 16 digits', 'amount = -1000000000000000', 'amount_has_15_digits'],
    ['a currency in lower case', `currency = 'jpy'`, 'currency_upper_case'],
    ['no currency', `currency = ''`, 'currency_length'],
    ['a long currency', `currency = repeat('x', 33)`, 'currency_length'],
  ])('%s', async (_name, change, constraint) => {
    await using database = await connect(app);
    await expect(database.query(`UPDATE invoices SET ${change} WHERE id = 1`)).rejects.toThrow(constraint);
  });

  test('the largest values that it accepts are listed, charged and added up exactly', async () => {
    await using own = await startApp(provider, { SEED_INVOICES: '0' });
    await using database = await connect(own);
    await database.query(
      `INSERT INTO invoices (id, customer_id, amount, currency)
       SELECT 999999999999999 - n, 1, 999999999999999 - n, 'EUR' FROM generate_series(0, 11) AS n`,
    );
    expect(await post(`${own.url}/invoices/pay`)).toEqual({ status: 200, body: {} });
    expect(await invoicesOf(own, '?after=I999999999999998')).toEqual([
      { InvoiceId: 'I999999999999999', Value: 9999999999999.99, Currency: 'EUR', IsPaid: true },
    ]);
    expect(await charges(provider)).toHaveLength(12);
    expect((await charges(provider)).at(-1)).toBe('I999999999999999 999999999999999 EUR');
    await using stream = await EventStream.open(`${own.url}/progress`);
    // Twelve times 999999999999999, less 66.
    expect((await stream.next())!.data.sums[0].paid).toEqual({ count: 12, amount: '119999999999999.22' });
  });
});

test('a read-only database makes both services unready, and payments get 503', async () => {
  await using own = await startProvider();
  await using keeping = await startApp(own);
  for (const service of [own, keeping]) {
    await using database = await connect(service);
    const name = new URL(service.databaseUrl).pathname.slice(1);
    await database.query(`ALTER DATABASE ${name} SET default_transaction_read_only = on`);
    await database.query(
      'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid()',
    );
  }
  const unready = { status: 503, body: { error: 'the database is read-only' } };
  await expect.poll(() => ask(`${own.url}/readyz`)).toEqual(unready);
  await expect.poll(() => ask(`${keeping.url}/readyz`)).toEqual(unready);
  const unavailable = { status: 503, body: { error: 'database unavailable' } };
  expect(await post(`${keeping.url}/invoices/pay`)).toEqual(unavailable);
  expect(await post(`${own.url}/payments/pay`, '{"id":"I1","value":5,"currency":"EUR"}')).toEqual(
    unavailable,
  );
});

describe('/reset', () => {
  test('resets both services', async () => {
    await post(`${app.url}/invoices/pay`);
    expect(await post(`${app.url}/reset`)).toEqual({ status: 200, body: {} });
    expect(await invoicesOf(app)).toEqual(seeded);
    expect(await charges(provider)).toEqual([]);
  });

  test('changes nothing if the provider refuses it', async () => {
    await using strict = await startService(paymentProvider);
    await using asking = await startApp(strict);
    await post(`${asking.url}/invoices/pay`);
    expect(await post(`${asking.url}/reset`)).toEqual({
      status: 502,
      body: { error: 'the payment provider was not reset: 404' },
    });
    expect(await invoicesOf(asking)).toEqual(allPaid);
  });

  test('is 404 unless it is allowed', async () => {
    await using strict = await startApp(provider, { ALLOW_RESET: 'false' });
    expect(await post(`${strict.url}/reset`)).toEqual({ status: 404, body: { error: 'not found' } });
  });
});

describe('/version', () => {
  test('names both services', async () => {
    expect(await ask(`${app.url}/version`)).toEqual({
      status: 200,
      body: {
        service: 'invoice-app',
        source: 'the code under test',
        instance: 'test',
        provider: { service: 'payment-provider', source: 'the code under test', instance: 'test' },
      },
    });
  });

  test('opens a new connection to the provider each time, so that any replica may answer', async () => {
    const connections = new Set();
    await using server = await listen(({ socket }, response) => {
      connections.add(socket);
      response.setHeader('Content-Type', 'application/json').end('{"service":"payment-provider"}');
    });
    await using own = await startApp(server);
    for (const asked of [1, 2, 3]) {
      const { body } = await ask(`${own.url}/version`);
      expect(body).toMatchObject({ provider: { service: 'payment-provider' } });
      expect(connections.size).toBe(asked);
    }
  });

  /** Starts a provider that begins each answer and then sends a space every 100 ms. */
  const startTrickling = async () => {
    const open = new Set<object>();
    const server = await listen(({ socket }, response) => {
      open.add(socket);
      socket.on('close', () => open.delete(socket));
      response.setHeader('Content-Type', 'application/json').write('{');
      const trickle = setInterval(() => response.write(' '), 100);
      response.on('close', () => clearInterval(trickle));
    });
    return { ...server, open };
  };

  test('contains null within two seconds if the answer of the provider trickles', async () => {
    await using trickling = await startTrickling();
    await using own = await startApp(trickling);
    const start = performance.now();
    expect((await ask(`${own.url}/version`)).body).toMatchObject({ provider: null });
    expect(performance.now() - start).toBeLessThan(2_000);
    await expect.poll(() => trickling.open.size).toBe(0);
  });

  test('cancels its request to the provider when the client disconnects', async () => {
    await using trickling = await startTrickling();
    await using own = await startApp(trickling);
    const waiting = fetch(`${own.url}/version`, { signal: AbortSignal.timeout(100) }).catch(() => 'left');
    await expect.poll(() => trickling.open.size, { interval: 10 }).toBe(1);
    expect(await waiting).toBe('left');
    // The timeout of the request would be a second.
    const start = performance.now();
    await expect.poll(() => trickling.open.size, { interval: 10 }).toBe(0);
    expect(performance.now() - start).toBeLessThan(700);
  });

  test('pay and reset time out too if the answer trickles', { timeout: 60_000, tags: ['slow'] }, async () => {
    await using trickling = await startTrickling();
    await using own = await startApp(trickling);
    // In this order, because pay waits for an unfinished reset.
    for (const path of ['/invoices/pay', '/reset']) {
      expect([path, (await post(own.url + path)).status]).toEqual([path, 502]);
    }
    await expect.poll(() => trickling.open.size, { timeout: 10_000 }).toBe(0);
  });

  test('contains null if the provider is down', async () => {
    await using alone = await startApp({ url: 'http://127.0.0.1:1' });
    expect((await ask(`${alone.url}/version`)).body).toMatchObject({ provider: null });
  });
});

test.each([
  ['GET', '/nowhere', 404, { error: 'not found' }, null],
  ['GET', '/%ff', 404, { error: 'not found' }, null],
  ['DELETE', '/invoices', 405, { error: 'method not allowed, only GET, HEAD' }, 'GET, HEAD'],
  ['GET', '/invoices/pay', 405, { error: 'method not allowed, only POST' }, 'POST'],
  ['OPTIONS', '/invoices/pay', 405, { error: 'method not allowed, only POST' }, 'POST'],
])('%s %s gets %d', async (method, path, status, body, allow) => {
  const response = await fetch(app.url + path, { method });
  expect([response.status, await response.json()]).toEqual([status, body]);
  expect(response.headers.get('Allow')).toBe(allow);
});
