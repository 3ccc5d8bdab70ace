import { Database } from '@payloop/chassis/database.ts';
import { createLog } from '@payloop/chassis/log.ts';
import type { Step } from '@payloop/chassis/step.ts';
import { describe, expect, test } from 'vitest';
import { brokenRules } from '../../../tests/payments/rules.ts';
import { ask, post, until } from '../../../tests/support/start-service.ts';
import {
  batchesOfTwo,
  connect,
  countUnpaid,
  pay,
  startApp,
  startProvider,
  startScriptedProvider,
} from '../../../tests/support/app-and-provider.ts';
import { migrations } from './invoices.ts';
import { Payments } from './payments.ts';
import { Provider } from './provider.ts';

/** Creates a step that stops at `name` until it is opened. */
function gate(name: string) {
  const reached = Promise.withResolvers<void>();
  const allowed = Promise.withResolvers<void>();
  const step: Step = async (at, work) => {
    if (at === name) {
      reached.resolve();
      await allowed.promise;
    }
    return work();
  };
  return { step, reached: reached.promise, open: () => allowed.resolve() };
}

test('an unknown outcome is retried under the same key, in the same run and in a later one', async () => {
  const keys: string[][] = [];
  let broken = true;
  await using provider = await startScriptedProvider((body) => {
    keys.push(body.map((payment: { idempotencyKey: string }) => payment.idempotencyKey));
    return broken ? [500, {}] : [200, body.map(({ id }: { id: string }) => ({ status: 200, id }))];
  });
  await using app = await startApp(provider);
  expect(await pay(app)).toMatchObject({
    status: 502,
    body: { paid: 0, declined: 0, refused: 0, unknown: 3 },
  });
  expect(keys.length).toBeGreaterThan(1);
  broken = false;
  expect(await pay(app)).toEqual({ status: 200, body: {} });
  expect(new Set(keys.map(String)).size).toBe(1);
});

test('a declined invoice is not retried in the same run, and the next run uses a new key', async () => {
  const keys: string[] = [];
  await using provider = await startScriptedProvider((body) => {
    keys.push(body[0].idempotencyKey);
    return [200, body.map(({ id }: { id: string }) => ({ status: 402, id, error: 'payment declined' }))];
  });
  await using app = await startApp(provider);
  expect(await pay(app)).toEqual({ status: 200, body: {} });
  expect(await pay(app)).toEqual({ status: 200, body: {} });
  expect(keys).toHaveLength(2);
  expect(new Set(keys).size).toBe(2);
});

test('a worker that claims late does not pay a batch that another worker has finished', async () => {
  await using provider = await startScriptedProvider((body) => [
    200,
    body.map(({ id }: { id: string }) => ({ status: 402, id, error: 'no' })),
  ]);
  const released = Promise.withResolvers<void>();
  let claims = 0;
  const step: Step = async (name, work) => {
    // All workers but the first have chosen their candidates, and claim late.
    if (name === 'claim' && claims++ > 0) await released.promise;
    const result = await work();
    if (name === 'release') released.resolve();
    return result;
  };
  await using app = await startApp(provider, { SEED_INVOICES: '4' }, { step });
  await using database = await connect(app);
  await database.query(batchesOfTwo);
  expect(await pay(app)).toEqual({ status: 200, body: {} });
  expect(provider.bodies).toHaveLength(2);
});

test('a key is stored before the first request with it', async () => {
  const asking = gate('post');
  await using provider = await startProvider();
  await using app = await startApp(provider, {}, { step: asking.step });
  const paying = pay(app);
  await asking.reached;
  await using database = await connect(app);
  const stored = (await database.query('SELECT attempt_key AS key FROM invoices ORDER BY id')).rows;
  asking.open();
  await paying;
  await using ledger = await connect(provider);
  const used = (await ledger.query('SELECT idempotency_key AS key FROM payments ORDER BY payment_id')).rows;
  expect(used).toEqual(stored);
});

test('pay during a run waits for it, and both calls are answered afterwards', async () => {
  const charging = gate('store');
  await using provider = await startProvider({}, { step: charging.step });
  await using app = await startApp(provider);
  const first = pay(app);
  await charging.reached;
  const second = pay(app);
  await expect(
    Promise.race([second, new Promise((resolve) => setTimeout(resolve, 200, 'waits'))]),
  ).resolves.toBe('waits');
  charging.open();
  expect(await Promise.all([first, second])).toEqual([
    { status: 200, body: {} },
    { status: 200, body: {} },
  ]);
  await using database = await connect(provider);
  expect((await database.query('SELECT FROM payments')).rows).toHaveLength(3);
});

test('pay during a run also pays the invoices added since that run began', async () => {
  const charging = gate('store');
  await using provider = await startProvider({}, { step: charging.step });
  await using app = await startApp(provider);
  await using database = await connect(app);
  const first = pay(app);
  await charging.reached;
  await database.query(`INSERT INTO invoices (id, customer_id, amount, currency) VALUES (4, 1, 1, 'EUR')`);
  const second = pay(app);
  charging.open();
  expect(await Promise.all([first, second])).toEqual([
    { status: 200, body: {} },
    { status: 200, body: {} },
  ]);
  expect((await database.query('SELECT FROM invoices WHERE paid_at IS NULL')).rows).toEqual([]);
});

test(
  'recovery reclaims a batch with an expired lease, although no client calls pay',
  { timeout: 20_000 },
  async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    await using database = await connect(app);
    await database.query(`UPDATE batches SET holder = 'dead', leased_until = now() + interval '10 s'`);
    await new Promise((resolve) => setTimeout(resolve, 3_500));
    // The lease is still live.
    expect(await countUnpaid(app)).toBe(3);
    await database.query('UPDATE batches SET leased_until = now()');
    await until(async () => (await countUnpaid(app)) === 0);
    await until(
      async () => (await database.query('SELECT FROM batches WHERE holder IS NULL')).rows.length > 0,
    );
    await using ledger = await connect(provider);
    expect(await brokenRules({ app: database, provider: ledger })).toEqual([]);
  },
);

test('recovery retries unknown outcomes', { timeout: 10_000 }, async () => {
  let failing = true;
  const step: Step = (name, work) =>
    name === 'charge' && failing ? Promise.reject(new Error('on purpose')) : work();
  await using provider = await startProvider({}, { step });
  await using app = await startApp(provider);
  expect((await pay(app)).status).toBe(502);
  failing = false;
  await using database = await connect(app);
  // The lease expires.
  expect(
    (await database.query('UPDATE batches SET leased_until = now() WHERE leased_until > now()')).rowCount,
  ).toBe(1);
  await until(async () => (await countUnpaid(app)) === 0);
});

test('while the lease of a batch is live, another replica waits and sends no request for it', async () => {
  const charging = gate('store');
  let repeated = 0;
  const step: Step = (name, work) => {
    if (name === 'look up') repeated += 1;
    return charging.step(name, work);
  };
  await using provider = await startProvider({}, { step });
  await using one = await startApp(provider, {}, { instance: 'one' });
  const steps: string[] = [];
  const watch: Step = (name, work) => {
    steps.push(name);
    return work();
  };
  await using other = await startApp(
    provider,
    { DATABASE_URL: one.databaseUrl },
    { step: watch, instance: 'other' },
  );
  const first = pay(one);
  await charging.reached;
  const second = pay(other);
  await until(async () => steps.filter((name) => name === 'wait').length >= 2);
  expect(steps).not.toContain('post');
  charging.open();
  expect(await Promise.all([first, second])).toEqual([
    { status: 200, body: {} },
    { status: 200, body: {} },
  ]);
  expect(steps).not.toContain('post');
  expect(repeated).toBe(0);
});

test('two replicas that pay many batches at once never request a payment twice', async () => {
  let repeated = 0;
  const step: Step = (name, work) => {
    if (name === 'look up') repeated += 1;
    return work();
  };
  await using provider = await startProvider({}, { step });
  await using one = await startApp(provider, { SEED_INVOICES: '200' }, { instance: 'one' });
  await using database = await connect(one);
  await database.query(batchesOfTwo);
  await using other = await startApp(provider, { DATABASE_URL: one.databaseUrl }, { instance: 'other' });
  const answers = await Promise.all([pay(one), pay(other)]);
  expect(answers.map(({ status }) => status)).toEqual([200, 200]);
  expect(repeated).toBe(0);
  await using ledger = await connect(provider);
  expect(await brokenRules({ app: database, provider: ledger })).toEqual([]);
});

test('a batch locked by another session does not delay the others', async () => {
  await using provider = await startProvider();
  await using app = await startApp(provider, { SEED_INVOICES: '8' });
  await using database = await connect(app);
  await database.query(batchesOfTwo);
  await database.query('BEGIN; SELECT FROM batches WHERE first_id = 3 FOR UPDATE');
  const paying = pay(app);
  // A claim that waited for the lock would time out after two seconds.
  const start = performance.now();
  await until(async () => (await countUnpaid(app)) === 2);
  expect(performance.now() - start).toBeLessThan(1_500);
  await database.query('COMMIT');
  expect(await paying).toEqual({ status: 200, body: {} });
  expect(await countUnpaid(app)).toBe(0);
});

test('an answer that arrives after its lease was lost counts once', async () => {
  const recording = gate('record');
  await using provider = await startProvider();
  await using slow = await startApp(provider, {}, { step: recording.step, instance: 'slow' });
  const late = pay(slow);
  await recording.reached;
  await using database = await connect(slow);
  await using other = await startApp(provider, { DATABASE_URL: slow.databaseUrl }, { instance: 'other' });
  await database.query('UPDATE batches SET leased_until = now()');
  expect(await pay(other)).toEqual({ status: 200, body: {} });
  recording.open();
  expect((await late).status).toBe(200);
  await using ledger = await connect(provider);
  expect(await brokenRules({ app: database, provider: ledger })).toEqual([]);
});

test.each(['UPDATE payment_events SET amount = 0', 'DELETE FROM payment_events', 'TRUNCATE payment_events'])(
  'the payment history rejects %s',
  async (statement) => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    await pay(app);
    await using database = await connect(app);
    await expect(database.query(statement)).rejects.toThrow('payment_events is only ever added to');
    expect((await database.query('SELECT FROM payment_events')).rows).toHaveLength(3);
  },
);

test('a reset waits for the run in flight', async () => {
  const recording = gate('record');
  await using provider = await startProvider();
  await using app = await startApp(provider, {}, { step: recording.step });
  const paying = pay(app);
  await recording.reached;
  const resetting = post(`${app.url}/reset`);
  await expect(
    Promise.race([resetting, new Promise((resolve) => setTimeout(resolve, 300, 'waits'))]),
  ).resolves.toBe('waits');
  recording.open();
  expect(await paying).toEqual({ status: 200, body: {} });
  expect(await resetting).toEqual({ status: 200, body: {} });
  expect(await countUnpaid(app)).toBe(3);
});

test.each([
  ['made unpaid', 'UPDATE invoices SET paid_at = NULL'],
  ['paid at another time', `UPDATE invoices SET paid_at = now() + interval '1 s'`],
  ['changed', 'UPDATE invoices SET amount = 1'],
  ['given another key', 'UPDATE invoices SET attempt_key = uuidv7()'],
  ['deleted', 'DELETE FROM invoices'],
  ['truncated', 'TRUNCATE invoices'],
])('a paid invoice cannot be %s, even by the role of invoice-app', async (_name, statement) => {
  await using provider = await startProvider();
  await using app = await startApp(provider);
  await pay(app);
  await using database = await connect(app);
  await expect(database.query(statement)).rejects.toThrow('a paid invoice is final');
  expect(await pay(app)).toEqual({ status: 200, body: {} });
  expect(await countUnpaid(app)).toBe(0);
  await using ledger = await connect(provider);
  expect((await ledger.query('SELECT FROM payments')).rows).toHaveLength(3);
});

test.each([
  ['amount', 'amount = 7'],
  ['currency', `currency = 'USD'`],
])('the %s of an invoice cannot change while it may be charged', async (_name, change) => {
  const recording = gate('record');
  await using provider = await startProvider();
  await using app = await startApp(provider, {}, { step: recording.step });
  await using database = await connect(app);
  const paying = pay(app);
  await recording.reached;
  await expect(database.query(`UPDATE invoices SET ${change} WHERE id = 1`)).rejects.toThrow(
    'invoice 1 may be charged at the moment',
  );
  recording.open();
  expect((await paying).status).toBe(200);
  await database.query(`INSERT INTO invoices (id, customer_id, amount, currency) VALUES (4, 1, 1, 'EUR')`);
  await database.query(`UPDATE invoices SET ${change} WHERE id = 4`);
  await pay(app);
  await using ledger = await connect(provider);
  expect(await brokenRules({ app: database, provider: ledger })).toEqual([]);
});

describe('a lease from before the clock of Postgres went back', () => {
  const hold = `UPDATE batches SET holder = 'dead', leased_until = now() + interval '1 h'`;

  test('does not delay pay', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    await using database = await connect(app);
    await database.query(hold);
    expect(await pay(app)).toEqual({ status: 200, body: {} });
    expect(await countUnpaid(app)).toBe(0);
  });

  test.each(['dead', 'none'])('is reclaimed by recovery (holder: %s)', async (holder) => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    await using database = await connect(app);
    await database.query(holder === 'dead' ? hold : hold.replace(`'dead'`, 'NULL'));
    await expect.poll(() => countUnpaid(app), { timeout: 10_000 }).toBe(0);
  });

  test('does not delay a reset, and is not shown as a run', async () => {
    await using provider = await startProvider();
    // Disables recovery, which would reclaim the batches.
    const step: Step = (name, work) => (name === 'find expired' ? Promise.resolve([] as never) : work());
    await using app = await startApp(provider, {}, { step });
    await using database = await connect(app);
    await database.query(hold);
    expect((await ask(`${app.url}/rows`)).body).toMatchObject({ rows: [{ state: 'unknown' }, {}, {}] });
    expect(await post(`${app.url}/reset`)).toEqual({ status: 200, body: {} });
  });
});

test('pay waits a limited time for a batch of another holder, and reports the invoices left', async () => {
  await using provider = await startProvider();
  await using app = await startApp(provider, { SEED_INVOICES: '4' });
  await using held = await connect(app);
  await held.query(batchesOfTwo);
  await held.query(
    `UPDATE batches SET holder = 'busy', leased_until = now() + interval '14 s' WHERE first_id = 3`,
  );
  const log = createLog('test', 'silent');
  const database = new Database({ url: app.databaseUrl, migrations, log, service: 'test' });
  await database.opened;
  const payments = new Payments({
    database,
    provider: new Provider({ url: `${provider.url}/payments/pay`, log }),
    holder: 'patient',
    step: (_name, work) => work(),
    log,
    patience: 300,
  });
  const start = performance.now();
  expect(await payments.pay('test')).toEqual({ paid: 2, declined: 0, refused: 0, unknown: 0, left: 2 });
  expect(performance.now() - start).toBeGreaterThan(300);
  await database.close();
});
