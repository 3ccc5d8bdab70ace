import { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { readOverlay } from '../../../local/overlay.ts';
import * as paymentProvider from '../../payment-provider/src/service.ts';
import { createDatabase } from '../../../tests/support/database.ts';
import { brokenRules } from '../../../tests/payments/rules.ts';
import { ask, post, startService, type RunningService } from '../../../tests/support/start-service.ts';
import { startApp, startProvider } from '../../../tests/support/app-and-provider.ts';
import * as invoiceApp from './service.ts';

const pending = [
  { id: 1, customerId: 1, amount: { value: 12.15, currency: 'EUR' }, status: 'PENDING' },
  { id: 2, customerId: 1, amount: { value: 10.25, currency: 'GBP' }, status: 'PENDING' },
  { id: 3, customerId: 1, amount: { value: 66.13, currency: 'DKK' }, status: 'PENDING' },
];
const paid = pending.map((invoice) => ({ ...invoice, status: 'PAID' }));
const customers = [
  { id: 1, currency: 'EUR' },
  { id: 2, currency: 'DKK' },
];

const pay = ({ url }: RunningService) => post(`${url}/rest/v1/invoices/pay`);

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

describe('GET /rest/v1', () => {
  test('/invoices returns exactly this text', async () => {
    const response = await fetch(`${app.url}/rest/v1/invoices`);
    expect(response.headers.get('Content-Type')).toBe('application/json; charset=utf-8');
    expect(await response.text()).toBe(JSON.stringify(pending));
  });

  test.each([
    ['/rest/v1/invoices/2', pending[1]],
    ['/rest/v1/customers', customers],
    ['/rest/v1/customers/2', customers[1]],
  ])('%s returns the record', async (path, body) => {
    expect(await ask(app.url + path)).toEqual({ status: 200, body });
  });

  test.each(['/invoices/4', '/invoices/0', '/invoices/-1', '/invoices/abc', '/invoices/I1', '/invoices/1.0'])(
    '%s gets 404',
    async (path) => {
      const response = await fetch(`${app.url}/rest/v1${path}`);
      expect([response.status, await response.text()]).toEqual([404, '"not found"']);
      expect(response.headers.get('Content-Type')).toMatch(/^application\/json/);
    },
  );

  // The id of 15 digits is beyond the integer column, the one of 16 digits beyond every id in use.
  test.each(['3', '0', 'abc', '999999999999999', '9999999999999999'])('customer %s gets 404', async (id) => {
    expect(await ask(`${app.url}/rest/v1/customers/${id}`)).toEqual({ status: 404, body: 'not found' });
  });

  test('/invoices streams several pages in id order, each invoice once, of both customers', async () => {
    await using large = await startApp(provider, { SEED_INVOICES: '2500' });
    const invoices = (await ask(`${large.url}/rest/v1/invoices`)).body as typeof pending;
    expect(invoices.map(({ id }) => id)).toEqual(Array.from({ length: 2500 }, (_, n) => n + 1));
    expect(new Set(invoices.map(({ customerId }) => customerId))).toEqual(new Set([1, 2]));
    expect((await ask(`${large.url}/rest/v1/invoices/2500`)).body).toEqual(invoices[2499]);
    // Seeding is the same for every database.
    await using other = await startApp(provider, { SEED_INVOICES: '2500' });
    expect((await ask(`${other.url}/rest/v1/invoices`)).body).toEqual(invoices);
  });

  test('/invoices returns an empty array if there are none', async () => {
    await using empty = await startApp(provider, { SEED_INVOICES: '0' });
    expect(await ask(`${empty.url}/rest/v1/invoices`)).toEqual({ status: 200, body: [] });
    expect(await pay(empty)).toEqual({ status: 200, body: true });
  });
});

test('/rest/health is ok without the database, and the other routes get 503', async () => {
  const database = await createDatabase();
  await using lonely = await startApp(provider, { DATABASE_URL: database.url });
  await database.drop();
  const response = await fetch(`${lonely.url}/rest/health`);
  expect([response.status, await response.text()]).toEqual([200, '"ok"']);
  expect(response.headers.get('Content-Type')).toMatch(/^application\/json/);
  for (const path of ['invoices', 'invoices/1', 'customers', 'customers/1']) {
    expect((await ask(`${lonely.url}/rest/v1/${path}`)).status).toBe(503);
  }
  expect((await pay(lonely)).status).toBe(503);
});

describe('POST /rest/v1/invoices/pay', () => {
  test('returns the bare JSON true if every invoice is paid', async () => {
    const response = await fetch(`${app.url}/rest/v1/invoices/pay`, { method: 'POST' });
    expect([response.status, await response.text()]).toEqual([200, 'true']);
    expect(response.headers.get('Content-Type')).toBe('application/json; charset=utf-8');
    expect((await ask(`${app.url}/rest/v1/invoices`)).body).toEqual(paid);
    expect((await ask(`${app.url}/rest/v1/invoices/1`)).body).toEqual(paid[0]);
    expect(await pay(app)).toEqual({ status: 200, body: true });
  });

  test('returns false with 200 if invoices are declined', async () => {
    await using declining = await startService(paymentProvider, { FAILURE_RATE: '1' });
    await using unlucky = await startApp(declining);
    expect(await pay(unlucky)).toEqual({ status: 200, body: false });
    expect((await ask(`${unlucky.url}/rest/v1/invoices`)).body).toEqual(pending);
  });

  test('returns false with 200 if the provider is down', async () => {
    await using unlucky = await startApp(provider, {
      PAYMENT_PROVIDER_URL: 'http://127.0.0.1:1/payments/pay',
    });
    expect(await pay(unlucky)).toEqual({ status: 200, body: false });
  });

  test('returns false if an invoice is added behind the run', async () => {
    const database = await createDatabase();
    const client = new Client({ connectionString: database.url });
    let added = 0;
    // By the first release, the provider has charged every invoice that the run knows.
    await using late = await startService(
      invoiceApp,
      { DATABASE_URL: database.url, PAYMENT_PROVIDER_URL: `${provider.url}/payments/pay` },
      {
        step: async (name, work) => {
          const done = await work();
          if (name === 'release' && added++ === 0) {
            await client.query(
              `INSERT INTO invoices (id, customer_id, amount, currency) VALUES (7000, 2, 1, 'EUR')`,
            );
          }
          return done;
        },
      },
    );
    await client.connect();
    expect(await pay(late)).toEqual({ status: 200, body: false });
    expect(await pay(late)).toEqual({ status: 200, body: true });
    await client.end();
    await late.stop();
    await database.drop();
  });

  test.each([
    ['a form', '{}', { 'Content-Type': 'application/x-www-form-urlencoded' }],
    ['broken JSON', '{"id":', { 'Content-Type': 'application/json' }],
  ])('pays without reading %s', async (_name, body, headers) => {
    expect(await post(`${app.url}/rest/v1/invoices/pay`, body, headers)).toEqual({ status: 200, body: true });
  });
});

describe('at a failure rate of 0.5 a first run pays about half of 1,000, and retries pay each of the others once', () => {
  const declining = { FAILURE_RATE: '0.5' };
  const flaky = readOverlay('flaky')['payment-provider'];

  test.each([
    ['with one replica', 1, declining],
    ['with three replicas', 3, declining],
    ['with three replicas and a flaky provider', 3, flaky],
  ])('%s', { timeout: 120_000 }, async (_name, count, env) => {
    await using unsteady = await startService(paymentProvider, env);
    const seeds = { SEED_INVOICES: '1000' };
    await using first = await startApp(unsteady, seeds, { instance: 'replica 0' });
    const replicas = [first];
    for (let n = 1; n < count; n += 1) {
      replicas.push(
        await startApp(unsteady, { ...seeds, DATABASE_URL: first.databaseUrl }, { instance: `replica ${n}` }),
      );
    }
    const sessions = {
      app: new Client({ connectionString: first.databaseUrl }),
      provider: new Client({ connectionString: unsteady.databaseUrl }),
    };
    await Promise.all([sessions.app.connect(), sessions.provider.connect()]);
    try {
      expect(await pay(first)).toEqual({ status: 200, body: false });
      const unpaid = (await ask(`${first.url}/invoices?status=unpaid`)).body as unknown[];
      // Five standard deviations of a binomial distribution around its mean.
      expect(Math.abs(unpaid.length - 500)).toBeLessThan(5 * Math.sqrt(1_000 * 0.25));

      const payUntilTrue = async (replica: RunningService) => {
        for (;;) {
          const { status, body } = await pay(replica);
          expect(status).toBe(200);
          if (body === true) return;
        }
      };
      await Promise.all(replicas.map(payUntilTrue));
      for (const { url } of replicas) {
        const invoices = (await ask(`${url}/rest/v1/invoices`)).body as typeof pending;
        expect(invoices.filter(({ status }) => status !== 'PAID')).toEqual([]);
      }
      const { rows } = await sessions.provider.query(
        `SELECT count(*)::int AS charges, count(DISTINCT payment_id)::int AS invoices
         FROM payments WHERE outcome = 'charged'`,
      );
      expect(rows).toEqual([{ charges: 1_000, invoices: 1_000 }]);
      expect(await brokenRules(sessions)).toEqual([]);
    } finally {
      await Promise.all([sessions.app.end(), sessions.provider.end()]);
      for (const replica of replicas.slice(1)) await replica[Symbol.asyncDispose]();
    }
  });
});
