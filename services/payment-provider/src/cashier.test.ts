import { step as direct, type Step } from '@payloop/chassis/step.ts';
import { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { startService, type RunningService } from '../../../tests/support/start-service.ts';
import * as paymentProvider from './service.ts';

let service: RunningService;
let database: Client;
beforeAll(async () => {
  service = await startService(paymentProvider);
  database = new Client({ connectionString: service.databaseUrl });
  await database.connect();
});
beforeEach(() => database.query('TRUNCATE payments'));
afterAll(async () => {
  await database.end();
  await service[Symbol.asyncDispose]();
});

const payment = { id: 'I1', value: 12.15, currency: 'EUR' };
const declined = { error: 'payment declined' };
const busy = 'the first request with this idempotency key is still in flight';
const mismatch = 'this idempotency key was used for another payment';

/** Posts a payment, or an array of payments. Returns the answer with its headers about idempotency keys. */
async function pay({ url }: RunningService, body: unknown, key?: string) {
  const response = await fetch(`${url}/payments/pay`, {
    method: 'POST',
    body: typeof body === 'string' ? body : JSON.stringify(body),
    headers: key === undefined ? {} : { 'Idempotency-Key': key },
  });
  return {
    status: response.status,
    hit: response.headers.get('Idempotency-Hit'),
    retryAfter: response.headers.get('Retry-After'),
    body: (await response.json()) as any,
  };
}
const answer = (status: number, body: unknown, headers = {}) => ({
  status,
  hit: null,
  retryAfter: null,
  body,
  ...headers,
});

const stored = async () =>
  (
    await database.query(
      'SELECT payment_id AS id, idempotency_key AS key, outcome FROM payments ORDER BY payment_id',
    )
  ).rows;
const charged = async () => (await stored()).map(({ id }) => id);

/** Starts another replica: the same database, but a state of its own in memory. */
const startReplica = (env: Record<string, string> = {}, step: Step = direct) =>
  startService(paymentProvider, { DATABASE_URL: service.databaseUrl, ...env }, { step });

describe('a key always gets its first answer', () => {
  test.each([
    ['bare', 'key-1', 'key-1'],
    ['quoted', '"key-1"', '"key-1"'],
    ['quoted, then bare', '"key-1"', 'key-1'],
  ])('sent %s', async (_name, first, second) => {
    expect(await pay(service, payment, first)).toEqual(answer(200, { id: 'I1' }));
    expect(await pay(service, payment, second)).toEqual(answer(200, { id: 'I1' }, { hit: 'true' }));
    expect(await stored()).toEqual([{ id: 'I1', key: 'key-1', outcome: 'charged' }]);
  });

  test('a charge, from a replica that declines every new payment', async () => {
    await pay(service, payment, 'a');
    await using other = await startReplica({ FAILURE_RATE: '1' });
    expect(await pay(other, payment, 'a')).toEqual(answer(200, { id: 'I1' }, { hit: 'true' }));
    expect(await pay(other, payment, 'b')).toEqual(answer(402, declined));
  });

  test('a decline, from a replica that declines nothing', async () => {
    await using other = await startReplica({ FAILURE_RATE: '1' });
    expect(await pay(other, payment, 'a')).toEqual(answer(402, declined));
    expect(await pay(other, payment, 'a')).toEqual(answer(402, declined, { hit: 'true' }));
    expect(await pay(service, payment, 'a')).toEqual(answer(402, declined, { hit: 'true' }));
    expect(await stored()).toEqual([{ id: 'I1', key: 'a', outcome: 'declined' }]);
  });

  test('after a restart', async () => {
    const before = await startReplica();
    await pay(before, payment, 'a');
    await before.stop();
    await using after = await startReplica();
    expect(await pay(after, payment, 'a')).toEqual(answer(200, { id: 'I1' }, { hit: 'true' }));
    expect(await charged()).toEqual(['I1']);
  });

  test('from two replicas called at the same time, for 50 keys', async () => {
    await using other = await startReplica();
    const keys = Array.from({ length: 50 }, (_, n) => `key-${n}`);
    const answers = await Promise.all(
      keys.flatMap((key) => [pay(service, payment, key), pay(other, payment, key)]),
    );
    expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]));
    expect(await charged()).toHaveLength(50);
  });

  test('unless the answer could not be stored', async () => {
    let failures = 1;
    const step: Step = (name, work) =>
      name === 'store' && failures-- > 0 ? Promise.reject(new Error('no disk')) : work();
    await using failing = await startReplica({}, step);
    expect((await pay(failing, payment, 'a')).status).toBe(500);
    expect(await pay(failing, payment, 'a')).toEqual(answer(200, { id: 'I1' }));
  });

  test('unless the answer is 400, because no payment was read', async () => {
    expect((await pay(service, '{"id":', 'a')).status).toBe(400);
    expect((await pay(service, { id: 'I1', value: 12.15 }, 'a')).status).toBe(400);
    expect(await pay(service, payment, 'a')).toEqual(answer(200, { id: 'I1' }));
  });
});

test.each([
  ['id', { id: 'I2' }],
  ['value', { value: 12.16 }],
  ['currency', { currency: 'GBP' }],
])('a key reused with another %s gets 422 and charges nothing', async (_name, difference) => {
  await pay(service, payment, 'a');
  const other = { ...payment, ...difference };
  expect(await pay(service, other, 'a')).toEqual(answer(422, { error: mismatch }));
  const inArray = await pay(service, [{ ...other, idempotencyKey: 'a' }]);
  expect(inArray.body).toEqual([{ status: 422, id: other.id, error: mismatch }]);
  expect(await charged()).toEqual(['I1']);
});

test('two payments with one key at two replicas at once: one is charged, the other gets 422', async () => {
  await using other = await startReplica();
  const answers = await Promise.all([pay(service, payment, 'a'), pay(other, { ...payment, value: 1 }, 'a')]);
  expect(answers.map(({ status }) => status).toSorted((a, b) => a - b)).toEqual([200, 422]);
  expect(await charged()).toEqual(['I1']);
});

test.each([
  ['no characters', '""'],
  ['more than 255 characters', 'x'.repeat(256)],
])('a key with %s gets 400', async (_name, key) => {
  expect(await pay(service, payment, key)).toEqual(
    answer(400, { error: 'an idempotency key must have 1 to 255 characters' }),
  );
  expect(await charged()).toEqual([]);
});

describe('while the first request with a key is in flight', () => {
  test('its replica answers 409 to that key and charges other keys', async () => {
    const arrived = Promise.withResolvers<void>();
    const allowed = Promise.withResolvers<void>();
    // The first statement waits until the test allows it.
    let first = true;
    const step: Step = async (name, work) => {
      if (name !== 'store' || !first) return work();
      first = false;
      arrived.resolve();
      await allowed.promise;
      return work();
    };
    await using slow = await startReplica({}, step);
    const inFlight = pay(slow, payment, 'a');
    await arrived.promise;
    expect(await pay(slow, payment, 'a')).toEqual(answer(409, { error: busy }, { retryAfter: '1' }));
    expect(await pay(slow, payment, 'b')).toEqual(answer(200, { id: 'I1' }));
    allowed.resolve();
    expect(await inFlight).toEqual(answer(200, { id: 'I1' }));
    expect(await pay(slow, payment, 'a')).toEqual(answer(200, { id: 'I1' }, { hit: 'true' }));
  });

  test('another replica waits for it, then answers 409', async () => {
    const insert = `INSERT INTO payments (payment_id, amount, currency, outcome, idempotency_key)
      VALUES ('I1', 1215, 'EUR', 'charged', 'a')`;
    await database.query('BEGIN');
    await database.query(insert);
    expect(await pay(service, payment, 'a')).toEqual(answer(409, { error: busy }, { retryAfter: '1' }));
    await database.query('ROLLBACK');
    // The first request was rolled back, so the key is free.
    expect(await pay(service, payment, 'a')).toEqual(answer(200, { id: 'I1' }));
  });

  test('another replica waits for it and returns the stored answer once it commits', async () => {
    await database.query('BEGIN');
    await database.query(
      `INSERT INTO payments (payment_id, amount, currency, outcome, idempotency_key)
       VALUES ('I1', 1215, 'EUR', 'declined', 'a')`,
    );
    const waiting = pay(service, payment, 'a');
    const isWaiting = `SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`;
    while ((await database.query(isWaiting)).rows.length === 0);
    await database.query('COMMIT');
    expect(await waiting).toEqual(answer(402, declined, { hit: 'true' }));
  });
});

describe('an array of payments', () => {
  const element = (id: string, rest = {}) => ({ ...payment, id, idempotencyKey: `key of ${id}`, ...rest });

  test('is answered in the order of its elements', async () => {
    const ids = ['I3', 'I1', 'I2'];
    expect(
      await pay(
        service,
        ids.map((id) => element(id)),
      ),
    ).toEqual(
      answer(
        200,
        ids.map((id) => ({ status: 200, id })),
      ),
    );
    expect(await charged()).toEqual(['I1', 'I2', 'I3']);
  });

  test('marks repeated answers, including declines', async () => {
    await using declining = await startReplica({ FAILURE_RATE: '1' });
    await pay(declining, [element('I2')]);
    await pay(service, payment, 'key of I1');
    expect((await pay(service, [element('I1'), element('I2'), element('I3')])).body).toEqual([
      { status: 200, id: 'I1', repeated: true },
      { status: 402, id: 'I2', ...declined, repeated: true },
      { status: 200, id: 'I3' },
    ]);
  });

  test('charges its valid elements and refuses the others', async () => {
    const noKey = { ...payment, id: 'I3' };
    const bad = [
      element('I2', { value: '1' }),
      noKey,
      null,
      'I4',
      [element('I5')],
      element('I6', { value: 0 }),
      element('I7', { idempotencyKey: '' }),
    ];
    const { status, body } = await pay(service, [element('I1'), ...bad, element('I8')]);
    const wrong = 'failed to process payment request parameters';
    expect([status, body]).toEqual([
      200,
      [
        { status: 200, id: 'I1' },
        { status: 400, id: 'I2', error: wrong },
        { status: 400, id: 'I3', error: 'could not retrieve idempotency key' },
        { status: 400, error: 'could not retrieve payment id' },
        { status: 400, error: wrong },
        { status: 400, error: wrong },
        { status: 400, id: 'I6', error: 'could not retrieve payment value' },
        { status: 400, id: 'I7', error: 'an idempotency key must have 1 to 255 characters' },
        { status: 200, id: 'I8' },
      ],
    ]);
    expect(await charged()).toEqual(['I1', 'I8']);
  });

  test('charges a key once, even if several elements have it', async () => {
    const twice = [element('I1'), element('I1'), element('I1', { value: 1 })];
    const { body } = await pay(service, twice);
    expect(body[0]).toEqual({ status: 200, id: 'I1' });
    // Busy, because the first element with this key is still in flight. The client retries.
    expect(body.slice(1)).toEqual([
      { status: 409, id: 'I1', error: busy },
      { status: 409, id: 'I1', error: busy },
    ]);
    expect(await charged()).toEqual(['I1']);
  });

  test('counts each of its charges by outcome', async () => {
    await using own = await startReplica();
    await pay(own, [element('I1'), element('I2'), element('I3')]);
    const changed = { ...element('I2'), value: 1 };
    await pay(own, [element('I1'), changed, element('I4'), {}]);
    const metrics = await (await fetch(own.metricsUrl)).text();
    const counts = [...metrics.matchAll(/charges_total{outcome="(\w+)"} (\d+)/g)].map((match) =>
      match.slice(1),
    );
    expect(Object.fromEntries(counts)).toMatchObject({ charged: '4', repeated: '1', mismatch: '1' });
  });

  test('may be empty', async () => {
    expect(await pay(service, [])).toEqual(answer(200, []));
  });

  test('may have at most 1,000 elements', async () => {
    const many = Array.from({ length: 1001 }, (_, n) => element(`I${n}`));
    expect(await pay(service, many)).toEqual(answer(400, { error: 'at most 1000 payments in one request' }));
    expect(await charged()).toEqual([]);
    const { body } = await pay(service, many.slice(1));
    expect(body.filter(({ status }: { status: number }) => status === 200)).toHaveLength(1000);
    expect(await charged()).toHaveLength(1000);
  });

  test('answers 409 only for the key that another replica is charging', async () => {
    await database.query('BEGIN');
    await database.query(
      `INSERT INTO payments (payment_id, amount, currency, outcome, idempotency_key)
       VALUES ('I1', 1215, 'EUR', 'charged', 'key of I1')`,
    );
    const both = [element('I1'), element('I2')];
    // The other element is charged meanwhile.
    expect((await pay(service, both)).body).toEqual([
      { status: 409, id: 'I1', error: busy },
      { status: 200, id: 'I2' },
    ]);
    await database.query('COMMIT');
    expect((await pay(service, both)).body).toEqual([
      { status: 200, id: 'I1', repeated: true },
      { status: 200, id: 'I2', repeated: true },
    ]);
  });
});
