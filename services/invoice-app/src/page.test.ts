import type { Step } from '@payloop/chassis/step.ts';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import * as paymentProvider from '../../payment-provider/src/service.ts';
import { EventStream } from '../../../tests/support/events.ts';
import { ask, post, startService, type RunningService } from '../../../tests/support/start-service.ts';
import { connect, pay, startApp, startProvider } from '../../../tests/support/app-and-provider.ts';

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

const rowsOf = async ({ url }: RunningService, query = '') => (await ask(`${url}/rows${query}`)).body as any;

const none = { count: 0, amount: '0.00' };
const nothing = {
  paid: none,
  open: none,
  declined: none,
  refused: none,
  paying: none,
  unknown: none,
  unsettled: none,
  unpaid: none,
};
const seededSums = [
  ['DKK', '66.13'],
  ['EUR', '12.15'],
  ['GBP', '10.25'],
];
/** Returns the totals of the three seeded invoices, all in one state. */
const allIn = (state: string) =>
  seededSums.map(([currency, amount]) =>
    Object.assign({ currency }, nothing, {
      [state]: { count: 1, amount },
      ...(state !== 'paid' && { open: { count: 1, amount } }),
    }),
  );

describe('the files of the page', () => {
  test.each([
    ['/', 'text/html; charset=utf-8'],
    ['/page/page.js', 'text/javascript; charset=utf-8'],
    ['/page/page.css', 'text/css; charset=utf-8'],
    ['/page/icon.svg', 'image/svg+xml'],
  ])('%s is served, and gets 304 if the client has it', async (path, type) => {
    const response = await fetch(app.url + path);
    expect([response.status, response.headers.get('Content-Type')]).toEqual([200, type]);
    expect(response.headers.get('Cache-Control')).toBe('no-cache');
    expect((await response.text()).length).toBeGreaterThan(100);
    const tag = response.headers.get('ETag')!;
    // By default, fetch adds `Cache-Control: no-cache`, which rules out a 304.
    const headers = { 'If-None-Match': tag, 'Cache-Control': 'max-age=0' };
    expect((await fetch(app.url + path, { headers })).status).toBe(304);
  });

  test.each([
    '/page/tsconfig.json',
    '/page/none.js',
    '/page/..%2Fservice.js',
    '/page/%2e%2e%2fmain.ts',
    '/page/',
  ])('%s gets 404', async (path) => {
    expect(await ask(app.url + path)).toEqual({ status: 404, body: { error: 'not found' } });
  });

  test('load only from this origin, and nothing inline', async () => {
    const { headers } = await fetch(app.url);
    const policy = headers.get('Content-Security-Policy');
    for (const part of ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"]) {
      expect(policy).toContain(part);
    }
    expect(policy).toContain("require-trusted-types-for 'script'");
    expect(policy).not.toContain('unsafe');
    expect(headers.get('X-Content-Type-Options')).toBe('nosniff');
  });
});

test.each(['/invoices/pay', '/reset'])(
  'POST %s is refused to pages of other origins, but not to its own page',
  async (path) => {
    for (const site of ['cross-site', 'same-site']) {
      const refused = await post(app.url + path, '', { 'Sec-Fetch-Site': site });
      expect(refused).toEqual({ status: 403, body: { error: 'cross-origin requests are not allowed' } });
    }
    for (const site of ['same-origin', 'none']) {
      expect((await post(app.url + path, '', { 'Sec-Fetch-Site': site })).status).toBe(200);
    }
  },
);

describe('GET /rows', () => {
  test('returns the invoices in id order with their states', async () => {
    expect(await rowsOf(app)).toEqual({
      total: 3,
      rows: [
        { id: 'I1', amount: '12.15', currency: 'EUR', state: 'unpaid', at: null, reason: null },
        { id: 'I2', amount: '10.25', currency: 'GBP', state: 'unpaid', at: null, reason: null },
        { id: 'I3', amount: '66.13', currency: 'DKK', state: 'unpaid', at: null, reason: null },
      ],
    });
    await pay(app);
    const { rows } = await rowsOf(app, '?from=1&limit=1');
    expect(rows).toMatchObject([{ id: 'I2', state: 'paid', reason: null }]);
    expect(Date.now() - Date.parse(rows[0].at)).toBeLessThan(30_000);
  });

  test('finds any place of a long list, with each filter', async () => {
    await using large = await startApp(provider, { SEED_INVOICES: '5000' });
    await using database = await connect(large);
    // A gap within a batch, a gap of several batches, and every hundredth invoice paid.
    await database.query(`DELETE FROM invoices WHERE id BETWEEN 100 AND 199 OR id BETWEEN 2001 AND 4000;
      UPDATE invoices SET paid_at = now() WHERE id % 100 = 0`);
    const names = async (query: string) => {
      const { total, rows } = await rowsOf(large, query);
      return [total, ...rows.map(({ id }: { id: string }) => id)];
    };
    expect(await names('?from=98&limit=3')).toEqual([2900, 'I99', 'I200', 'I201']);
    expect(await names('?from=1899&limit=2')).toEqual([2900, 'I2000', 'I4001']);
    expect(await names('?from=2898&limit=10')).toEqual([2900, 'I4999', 'I5000']);
    expect(await names('?show=paid&from=18&limit=3')).toEqual([29, 'I2000', 'I4100', 'I4200']);
    expect(await names('?show=unpaid&from=99&limit=2')).toEqual([2871, 'I201', 'I202']);
    expect(await names('?show=declined')).toEqual([0]);
    expect(await names('?from=2900')).toEqual([2900]);
  });

  test.each([
    ['show=some', 'show must be one of all, unpaid, declined, refused, paid, not "some"'],
    ['limit=1001', 'limit must be a whole number from 1 to 1000, not "1001"'],
    ['from=-1', 'from must be a whole number from 0 to 9007199254740991, not "-1"'],
  ])('refuses ?%s', async (query, error) => {
    expect(await ask(`${app.url}/rows?${query}`)).toEqual({ status: 400, body: { error } });
  });
});

test('a decline is shown with its time and the provider’s reason, until the invoice is paid', async () => {
  await using declining = await startService(paymentProvider, { FAILURE_RATE: '1' });
  await using unlucky = await startApp(declining);
  await pay(unlucky);
  const { total, rows } = await rowsOf(unlucky, '?show=declined');
  expect(total).toBe(3);
  expect(rows[0]).toMatchObject({ id: 'I1', state: 'declined', reason: 'payment declined' });
  expect(Date.now() - Date.parse(rows[0].at)).toBeLessThan(30_000);
  await using lucky = await startApp(provider, { DATABASE_URL: unlucky.databaseUrl });
  await pay(lucky);
  expect((await rowsOf(lucky, '?show=declined')).total).toBe(0);
  expect((await rowsOf(lucky)).rows[0]).toMatchObject({ state: 'paid', reason: null });
});

describe('GET /progress', () => {
  test('sends the totals at once, and the delay before a reconnect', async () => {
    await using stream = await EventStream.open(`${app.url}/progress`);
    expect(stream.headers.get('Content-Type')).toMatch(/^text\/event-stream/);
    expect(stream.headers.get('X-Accel-Buffering')).toBe('no');
    expect(await stream.next()).toMatchObject({
      event: 'progress',
      data: { running: false, sums: allIn('unpaid') },
    });
    expect(stream.seen).toMatch(/^retry: \d+\n\n/);
  });

  test('reports the run of another replica and its result', async () => {
    const reached = Promise.withResolvers<void>();
    const allowed = Promise.withResolvers<void>();
    const step: Step = async (name, work) => {
      if (name === 'record') {
        reached.resolve();
        await allowed.promise;
      }
      return work();
    };
    await using other = await startApp(provider, { DATABASE_URL: app.databaseUrl }, { step });
    await using stream = await EventStream.open(`${app.url}/progress`);
    await stream.next();
    const paying = pay(other);
    await reached.promise;
    const during = await stream.until(({ data }) => data.running);
    expect(during.data.sums).toEqual(allIn('paying'));
    expect((await rowsOf(app)).rows[0]).toMatchObject({ state: 'paying', at: null });
    allowed.resolve();
    await paying;
    const after = await stream.until(({ data }) => !data.running);
    expect(after.data.sums).toEqual(allIn('paid'));
  });

  test('reports an expired lease, although nothing is written', async () => {
    // Disables recovery, which would reclaim the batches.
    await using stopped = await startApp(
      provider,
      {},
      {
        step: (name, work) => (name === 'find expired' ? Promise.resolve([] as never) : work()),
      },
    );
    await using database = await connect(stopped);
    await database.query(`UPDATE batches SET holder = 'dead', leased_until = now() + interval '2 s'`);
    await using stream = await EventStream.open(`${stopped.url}/progress`);
    await stream.until(({ data }) => data.running);
    const after = await stream.until(({ data }) => !data.running);
    expect(after.data.sums).toEqual(allIn('unknown'));
  });

  test('reports unknown outcomes if the provider is down', async () => {
    await using alone = await startApp({ url: 'http://127.0.0.1:1' });
    await using stream = await EventStream.open(`${alone.url}/progress`);
    expect((await pay(alone)).status).toBe(502);
    const after = await stream.until(({ data }) => !data.running && data.sums[0].unknown.count > 0);
    expect(after.data.sums).toEqual(allIn('unknown'));
    expect((await rowsOf(alone, '?show=unpaid')).rows[2]).toMatchObject({ id: 'I3', state: 'unknown' });
  });

  test('reports an invoice added to an existing batch by SQL', async () => {
    await using stream = await EventStream.open(`${app.url}/progress`);
    await stream.next();
    await using database = await connect(app);
    await database.query(`INSERT INTO invoices (id, customer_id, amount, currency) VALUES (4, 1, 5, 'EUR')`);
    const event = await stream.next();
    expect(event?.data.sums[1]).toMatchObject({ currency: 'EUR', unpaid: { count: 2, amount: '12.20' } });
  });

  test('a declined invoice counts as declined while the rest of its batch is retried', async () => {
    // The first was declined before the current claim, the second after it. The batch is leased for a retry.
    await using database = await connect(app);
    await database.query(`
      UPDATE batches SET holder = 'x', claimed_at = now() - interval '1 s', leased_until = now() + interval '10 s';
      UPDATE invoices SET declined_at = now() - interval '2 s' WHERE id = 1;
      UPDATE invoices SET declined_at = now() WHERE id = 2`);
    const { rows } = await rowsOf(app);
    await database.query('UPDATE batches SET holder = NULL, leased_until = NULL');
    expect(rows.map(({ state }: { state: string }) => state)).toEqual(['paying', 'declined', 'paying']);
  });

  test('an unsettled invoice stays unsettled while the rest of its batch is paid', async () => {
    await using database = await connect(app);
    await database.query(`
      UPDATE batches SET holder = 'x', claimed_at = now(), leased_until = now() + interval '10 s';
      UPDATE invoices SET asked_at = now() WHERE id = 1;
      UPDATE invoices SET asked_at = now(), unknown_at = now() WHERE id = 2`);
    const { rows } = await rowsOf(app);
    await database.query('UPDATE batches SET holder = NULL, leased_until = NULL');
    expect(rows.map(({ state }: { state: string }) => state)).toEqual(['paying', 'unsettled', 'paying']);
  });

  test('HEAD gets a complete, empty answer', async () => {
    const response = await fetch(`${app.url}/progress`, { method: 'HEAD' });
    expect([response.status, await response.text()]).toEqual([200, '']);
  });

  test('stopping the service closes the stream and does not wait for the client', async () => {
    await using own = await startApp(provider);
    await using stream = await EventStream.open(`${own.url}/progress`);
    await stream.next();
    const start = performance.now();
    await own.stop();
    expect(performance.now() - start).toBeLessThan(2_000);
    expect(await stream.next()).toBeUndefined();
  });
});
