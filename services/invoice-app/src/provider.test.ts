import { json } from 'node:stream/consumers';
import { describe, expect, test } from 'vitest';
import { brokenRules } from '../../../tests/payments/rules.ts';
import { ask, listen, type RunningService } from '../../../tests/support/start-service.ts';
import {
  type Answer,
  batchesOfTwo,
  connect,
  countUnpaid,
  pay,
  startApp,
  startProvider,
  startScriptedProvider,
} from '../../../tests/support/app-and-provider.ts';

test('a decline ends its attempt even if Postgres cannot store the reason as it is', async () => {
  await using provider = await startScriptedProvider((body) => [
    200,
    body.map(({ id }: { id: string }) => ({ status: 402, id, error: `no\0 ${'x'.repeat(500)}` })),
  ]);
  await using app = await startApp(provider);
  expect(await pay(app)).toEqual({ status: 200, body: {} });
  await using database = await connect(app);
  const { rows } = await database.query('SELECT decline_reason AS reason FROM invoices');
  expect(rows).toEqual(Array.from({ length: 3 }, () => ({ reason: `no ${'x'.repeat(197)}` })));
});

test('a provider that takes no arrays gets one payment a request, each with its key', async () => {
  const keys = new Map<string, string>();
  await using original = await startScriptedProvider((body, request) => {
    if (Array.isArray(body)) return [400, { error: 'failed to process payment request parameters' }];
    keys.set(body.id, String(request.headers['idempotency-key']));
    return [200, { id: body.id }];
  });
  await using app = await startApp(original);
  expect(await pay(app)).toEqual({ status: 200, body: {} });
  expect(await countUnpaid(app)).toBe(0);
  expect(original.bodies.slice(1)).toEqual([
    { id: 'I1', value: 12.15, currency: 'EUR' },
    { id: 'I2', value: 10.25, currency: 'GBP' },
    { id: 'I3', value: 66.13, currency: 'DKK' },
  ]);
  await using database = await connect(app);
  const { rows } = await database.query(
    `SELECT 'I' || invoice_id AS id, idempotency_key AS key FROM payment_events ORDER BY invoice_id`,
  );
  expect(rows).toEqual([...keys].map(([id, key]) => ({ id, key })));
});

/** The provider's reason for refusing an amount of 0. */
const noValue = 'could not retrieve payment value';

describe('an invoice that the provider refuses', () => {
  test('does not stop the others, and is retried only after a change', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider, { SEED_INVOICES: '24' });
    await using database = await connect(app);
    // One refusal in each of ten batches: more batches than a run has workers.
    await database.query(`${batchesOfTwo}; UPDATE invoices SET amount = 0 WHERE id % 2 = 1 AND id < 20`);
    const error = 'the payment provider refused invoices: change their value or currency';
    const told = { declined: 0, refused: 10, unknown: 0 };
    expect(await pay(app)).toEqual({ status: 502, body: { error, paid: 14, ...told } });
    expect(await pay(app)).toEqual({ status: 502, body: { error, paid: 0, ...told } });
    const events = `SELECT kind, reason, count(*)::int FROM payment_events GROUP BY 1, 2 ORDER BY 1`;
    expect((await database.query(events)).rows).toEqual([
      { kind: 'charged', reason: null, count: 14 },
      { kind: 'refused', reason: noValue, count: 10 },
    ]);
    const { rows } = await database.query('SELECT FROM batches WHERE leased_until IS NOT NULL');
    expect(rows).toEqual([]);
    // The provider does not see the customer, so changing it causes no retry.
    await database.query('UPDATE invoices SET customer_id = 2 WHERE id = 1');
    expect((await pay(app)).body).toMatchObject({ paid: 0, refused: 10 });
    await database.query('UPDATE invoices SET amount = 5 WHERE id = 1');
    expect((await pay(app)).body).toMatchObject({ paid: 1, refused: 9 });
    await using ledger = await connect(provider);
    expect(await brokenRules({ app: database, provider: ledger })).toEqual([]);
  });

  test('keeps its key, so that an unnoticed charge under it is not made twice', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    await using database = await connect(app);
    await using ledger = await connect(provider);
    // Charged with another amount, but the answer never arrived.
    const { rows } = await database.query('SELECT attempt_key AS key FROM invoices WHERE id = 1');
    await ledger.query(
      `INSERT INTO payments (payment_id, amount, currency, outcome, idempotency_key)
       VALUES ('I1', 1, 'EUR', 'charged', $1)`,
      [rows[0].key],
    );
    expect((await pay(app)).body).toMatchObject({ paid: 2, refused: 1 });
    await database.query('UPDATE invoices SET amount = 7 WHERE id = 1');
    expect((await pay(app)).body).toMatchObject({ paid: 0, refused: 1 });
    const charges = await ledger.query(`SELECT FROM payments WHERE payment_id = 'I1'`);
    expect(charges.rows).toHaveLength(1);
  });

  test.each([400, 422])('is known by %i with a reason when payments are sent one by one', async (status) => {
    await using original = await startScriptedProvider((body) => {
      if (Array.isArray(body)) return [400, { error: 'failed to process payment request parameters' }];
      return body.id === 'I2' ? [status, { error: 'not like this' }] : [200, { id: body.id }];
    });
    await using app = await startApp(original);
    expect((await pay(app)).body).toMatchObject({ paid: 2, refused: 1, unknown: 0 });
    expect((await ask(`${app.url}/rows?show=refused`)).body).toMatchObject({
      total: 1,
      rows: [{ id: 'I2', state: 'refused', reason: 'not like this' }],
    });
    const metrics = await (await fetch(app.metricsUrl)).text();
    expect(metrics).toContain('payments_total{outcome="refused"} 1\n');
    expect(metrics).toContain('refused_invoices 1\n');
    const { length } = original.bodies;
    await pay(app);
    expect(original.bodies).toHaveLength(length);
  });

  test('can fail a whole array: the others are then paid one by one, and later as arrays again', async () => {
    await using strict = await startScriptedProvider((body) => {
      const bodies = Array.isArray(body) ? body : [body];
      if (bodies.some(({ id }) => id === 'I2')) return [422, { error: 'I2 is wrong' }];
      if (!Array.isArray(body)) return [200, { id: body.id }];
      return [200, bodies.map(({ id }) => ({ status: 200, id }))];
    });
    await using app = await startApp(strict);
    expect((await pay(app)).body).toMatchObject({ paid: 2, refused: 1, unknown: 0 });
    await using database = await connect(app);
    await database.query(`INSERT INTO invoices (id, customer_id, amount, currency) VALUES (4, 1, 5, 'EUR')`);
    await pay(app);
    expect(strict.bodies.at(-1)).toMatchObject([{ id: 'I4' }]);
  });
});

describe('a run gives up only if an answer says that the provider is down', () => {
  // Two batches more than a run has workers: they are left if the first six show that the provider is down.
  const start = async (answer: (body: any) => Answer | Promise<Answer>) => {
    const server = await startScriptedProvider(answer);
    const app = await startApp(server, { SEED_INVOICES: '16' });
    const database = await connect(app);
    await database.query(batchesOfTwo);
    const end = async () => {
      await database[Symbol.asyncDispose]();
      await app[Symbol.asyncDispose]();
      await server[Symbol.asyncDispose]();
    };
    return { server, app, [Symbol.asyncDispose]: end };
  };

  test.each([500, 503, 401, 403, 429])(
    '%i leaves the other batches, and does not call them unknown',
    async (status) => {
      // Each worker has claimed a batch before the first of them learns that the provider is down.
      const requested = new Set<string>();
      const allRequested = Promise.withResolvers<void>();
      await using world = await start(async ([{ id }]) => {
        if (requested.add(id).size === 6) allRequested.resolve();
        await allRequested.promise;
        return [status, { error: 'not now' }];
      });
      const { body } = await pay(world.app);
      expect(body).toMatchObject({ paid: 0, refused: 0, unknown: 12, left: 4 });
    },
  );

  test.each<[string, (body: { id: string }[]) => [number, unknown]]>([
    ['busy keys', (body) => [200, body.map(({ id }) => ({ status: 409, id, error: 'at work' }))]],
    ['404', () => [404, { error: 'not found' }]],
    ['an empty array', () => [200, []]],
  ])('every batch is requested after %s', { timeout: 20_000 }, async (_name, answer) => {
    await using world = await start(answer);
    expect((await pay(world.app)).body).toMatchObject({ paid: 0, refused: 0, unknown: 16 });
    expect((await pay(world.app)).body).not.toHaveProperty('left');
  });
});

test('outcomes in another order end the attempts that they name', async () => {
  await using provider = await startScriptedProvider((body) => [
    200,
    body
      .map(({ id }: { id: string }) => (id === 'I2' ? { status: 402, id, error: 'no' } : { status: 200, id }))
      .toReversed(),
  ]);
  await using app = await startApp(provider);
  expect(await pay(app)).toEqual({ status: 200, body: {} });
  expect((await ask(`${app.url}/rows?show=declined`)).body).toMatchObject({ rows: [{ id: 'I2' }] });
  expect(await countUnpaid(app)).toBe(1);
});

describe('an answer that does not prove a decline keeps the key', () => {
  const readKeys = async (app: RunningService) => {
    await using database = await connect(app);
    return (await database.query('SELECT id, attempt_key FROM invoices ORDER BY id')).rows;
  };

  test.each<[string, (body: { id: string; idempotencyKey: string }[]) => unknown]>([
    ['without a reason', (body) => body.map(({ id }) => ({ status: 402, id }))],
    ['with a reason that is not text', (body) => body.map(({ id }) => ({ status: 402, id, error: 5 }))],
    ['without an id', (body) => body.map(() => ({ status: 402, error: 'no' }))],
    ['of another payment', (body) => body.map(() => ({ status: 402, id: 'I9', error: 'no' }))],
    ['fewer than requested', (body) => body.slice(1).map(({ id }) => ({ status: 402, id, error: 'no' }))],
    [
      'more than requested',
      (body) => [...body, body[0]!].map(({ id }) => ({ status: 402, id, error: 'no' })),
    ],
    ['with the same id twice', (body) => body.map(() => ({ status: 402, id: 'I1', error: 'no' }))],
    ['null', (body) => body.map(() => null)],
  ])('outcomes %s', async (_name, answer) => {
    await using provider = await startScriptedProvider((body) => [200, answer(body)]);
    await using app = await startApp(provider);
    const keys = await readKeys(app);
    expect((await pay(app)).body).toMatchObject({ declined: 0, unknown: 3 });
    expect(await readKeys(app)).toEqual(keys);
  });

  test.each([
    ['an HTML page of a proxy', '<html>quota</html>'],
    ['JSON without a reason', '{"quota":1}'],
    ['nothing', ''],
    ['a JSON string', '"payment declined"'],
  ])('402 with %s', async (_name, text) => {
    await using between = await listen(async (request, response) => {
      const body = await json(request);
      const refusal = '{"error":"failed to process payment request parameters"}';
      response.writeHead(Array.isArray(body) ? 400 : 402).end(Array.isArray(body) ? refusal : text);
    });
    await using app = await startApp(between);
    const keys = await readKeys(app);
    expect((await pay(app)).body).toMatchObject({ declined: 0, refused: 0, unknown: 3 });
    expect(await readKeys(app)).toEqual(keys);
  });
});
