// Payments at a provider like the original: it refuses arrays, ignores keys and is slow.
// @module-tag slow
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { startVictim } from '../../../tests/payments/start-victim.ts';
import { startOriginal, type Original } from '../../../tests/support/original.ts';
import { ask, until, type RunningService } from '../../../tests/support/start-service.ts';
import { connect, pay, startApp, startProvider } from '../../../tests/support/app-and-provider.ts';

let original: Original;
beforeEach(async () => {
  original = await startOriginal();
});
afterEach(() => original[Symbol.asyncDispose]());

const chargedTwice = () => [...original.charges].filter(([, count]) => count > 1);

/** Runs a statement in the database of a service, bypassing its API. */
async function query({ databaseUrl }: Pick<RunningService, 'databaseUrl'>, text: string): Promise<any[]> {
  await using database = await connect({ databaseUrl });
  return (await database.query(text)).rows;
}
/** Finds the invoices that are not paid, refused or reported as unknown for manual review. */
const open = `SELECT id FROM invoices WHERE paid_at IS NULL AND refused_at IS NULL AND unknown_at IS NULL`;

test(
  'a run over 1,000 invoices at 250 ms each outlasts a lease and charges each once',
  { timeout: 120_000 },
  async () => {
    await using app = await startApp(original, { SEED_INVOICES: '1000' });
    // Its recovery looks for expired leases all the time.
    await using other = await startApp(original, { DATABASE_URL: app.databaseUrl }, { instance: 'other' });
    const start = performance.now();
    expect(await Promise.all([pay(app), pay(other)])).toEqual([
      { status: 200, body: {} },
      { status: 200, body: {} },
    ]);
    // Longer than a lease.
    expect(performance.now() - start).toBeGreaterThan(15_000);
    expect(original.charges.size).toBe(1000);
    expect(chargedTwice()).toEqual([]);
    expect(await query(app, `SELECT kind, count(*)::int FROM payment_events GROUP BY 1`)).toEqual([
      { kind: 'charged', count: 1000 },
    ]);
  },
);

/** Expects at least `least` invoices to be stored as paid, and the lease to be renewed during the run. */
async function storesWhileItRenews(app: RunningService, least: number): Promise<void> {
  const [{ paid, lease }] = await query(
    app,
    `SELECT (SELECT count(*)::int FROM invoices WHERE paid_at IS NOT NULL) AS paid, leased_until AS lease FROM batches`,
  );
  expect(paid).toBeGreaterThanOrEqual(least);
  await sleep(5_500);
  const [later] = await query(app, 'SELECT leased_until AS lease FROM batches');
  expect(later.lease - lease).toBeGreaterThan(4_000);
}

test('answers are stored on arrival, and the lease is renewed meanwhile', { timeout: 60_000 }, async () => {
  await using app = await startApp(original, { SEED_INVOICES: '300' });
  const paying = pay(app);
  await until(() => original.charges.size > 50);
  // In flight is not unknown: the metric raises an alert.
  expect(await query(app, 'SELECT FROM invoices WHERE asked_at IS NOT NULL')).not.toEqual([]);
  expect(await (await fetch(app.metricsUrl)).text()).toContain('\nunsettled_invoices 0\n');
  await storesWhileItRenews(app, 31);
  expect((await paying).status).toBe(200);
});

test(
  'with keys, answers are stored every second, and a heartbeat renews the lease',
  { timeout: 60_000 },
  async () => {
    original.keys = true;
    await using app = await startApp(original, { SEED_INVOICES: '500' });
    const paying = pay(app);
    await until(() => original.charges.size > 150);
    await storesWhileItRenews(app, 60);
    expect(await query(app, 'SELECT FROM invoices WHERE asked_at IS NOT NULL')).toEqual([]);
    expect((await paying).status).toBe(200);
    expect(chargedTwice()).toEqual([]);
  },
);

test('answers that arrive out of order are all stored', async () => {
  original.keys = true;
  original.fault = (id) => {
    original.delay = id.endsWith('1') ? 100 : 5;
    return undefined;
  };
  await using app = await startApp(original, { SEED_INVOICES: '60' });
  expect(await pay(app)).toEqual({ status: 200, body: {} });
  expect(await query(app, 'SELECT FROM invoices WHERE paid_at IS NULL')).toEqual([]);
});

test('once a provider stops honouring keys, each invoice is marked before its request', async () => {
  original.keys = true;
  original.delay = 20;
  await using app = await startApp(original, { SEED_INVOICES: '300' });
  const paying = pay(app);
  await until(() => original.charges.size > 50);
  original.keys = false;
  // Leaves time for the requests in flight to be answered.
  await until(() => original.charges.size > 100);
  original.fault = () => 'break off';
  expect((await paying).status).toBe(502);
  const ended = await query(
    app,
    'SELECT id FROM invoices WHERE paid_at IS NOT NULL OR unknown_at IS NOT NULL',
  );
  const known = new Set(ended.map(({ id }) => `I${id}`));
  expect([...original.charges.keys()].filter((id) => !known.has(id))).toEqual([]);
  expect(chargedTwice()).toEqual([]);
});

test('a holder that loses its lease sends no further requests', { timeout: 60_000 }, async () => {
  await using app = await startApp(original, { SEED_INVOICES: '300' });
  const paying = pay(app);
  await until(() => original.charges.size > 20);
  // Longer than the rest of the run takes.
  await query(app, `UPDATE batches SET holder = 'somebody else', leased_until = now() + interval '14 s'`);
  await until(() => original.underWay() === 0);
  const { size } = original.charges;
  await sleep(2_000);
  expect(original.charges.size).toBe(size);
  expect(size).toBeLessThan(60);
  await query(app, 'UPDATE batches SET leased_until = now()');
  expect((await paying).status).toBe(200);
  expect(original.charges.size).toBe(300);
  expect(chargedTwice()).toEqual([]);
});

test(
  'after kill -9 no retry charges twice, and unknown outcomes are reported for manual review',
  { timeout: 120_000 },
  async () => {
    await using survivor = await startApp(original, { SEED_INVOICES: '200' }, { instance: 'survivor' });
    const { child, port } = await startVictim('invoice-app', {
      INSTANCE: 'victim',
      DATABASE_URL: survivor.databaseUrl,
      PAYMENT_PROVIDER_URL: `${original.url}/payments/pay`,
    });
    pay({ url: `http://127.0.0.1:${port}` }).catch(() => {});
    await until(() => original.charges.size > 60 && original.underWay() > 5);
    child.kill('SIGKILL');
    await once(child, 'exit');
    // The lease expires, and no client calls pay.
    await query(survivor, 'UPDATE batches SET leased_until = now()');
    await until(async () => (await query(survivor, open)).length === 0);
    await until(
      async () => (await query(survivor, 'SELECT FROM batches WHERE holder IS NOT NULL')).length === 0,
    );
    expect(chargedTwice()).toEqual([]);
    const unknown = await query(survivor, 'SELECT id FROM invoices WHERE unknown_at IS NOT NULL ORDER BY id');
    // Only the requests in flight: at most ten at a time.
    expect(unknown.length).toBeGreaterThan(0);
    expect(unknown.length).toBeLessThanOrEqual(10);
    const events = `SELECT invoice_id AS id FROM payment_events WHERE kind = 'unknown' ORDER BY 1`;
    expect(await query(survivor, events)).toEqual(unknown);
    const answer = await pay(survivor);
    expect(answer).toMatchObject({ status: 502, body: { paid: 0, unknown: unknown.length } });
    expect(chargedTwice()).toEqual([]);
    const { body } = (await ask(`${survivor.url}/rows?limit=200`)) as { body: any };
    const shown = body.rows.filter(({ state }: { state: string }) => state === 'unsettled');
    expect(shown.map(({ id }: { id: string }) => id)).toEqual(unknown.map(({ id }) => `I${id}`));
    expect(shown[0].reason).toBe('the provider ignores keys: look it up there');
    const metrics = await (await fetch(survivor.metricsUrl)).text();
    expect(metrics).toContain(`unsettled_invoices ${unknown.length}\n`);

    // Manual review settles the first as charged and the second as not charged.
    const [first, second] = unknown;
    await query(survivor, `SELECT settle_invoice(${first.id}, true)`);
    original.charges.delete(`I${second.id}`);
    await query(survivor, `SELECT settle_invoice(${second.id}, false)`);
    await expect(query(survivor, `SELECT settle_invoice(${first.id}, true)`)).rejects.toThrow(
      `invoice ${first.id} has no unknown outcome to settle`,
    );
    expect((await pay(survivor)).body).toMatchObject({ paid: 1, unknown: unknown.length - 2 });
    expect(chargedTwice()).toEqual([]);
  },
);

test('an invoice that a holder left is reported even if its batch was claimed and released since', async () => {
  original.delay = 5;
  await using app = await startApp(original, { SEED_INVOICES: '30' });
  // The state in which a worker releases a batch that another worker of its run has already paid.
  await query(app, 'UPDATE invoices SET asked_at = now() WHERE id = 7');
  await query(app, `UPDATE batches SET holder = NULL, leased_until = now() - interval '1 s'`);
  await until(
    async () => (await query(app, 'SELECT FROM batches WHERE leased_until IS NOT NULL')).length === 0,
  );
  expect(await query(app, 'SELECT id FROM invoices WHERE unknown_at IS NOT NULL')).toEqual([{ id: '7' }]);
  expect(original.charges.get('I7')).toBeUndefined();
});

test('an invoice is reported and not retried if its connection is closed, and the others are paid', async () => {
  original.delay = 5;
  original.fault = (id) => (id === 'I7' ? 'break off' : undefined);
  await using app = await startApp(original, { SEED_INVOICES: '30' });
  const expected = { status: 502, body: { declined: 0, refused: 0, unknown: 1 } };
  expect(await pay(app)).toMatchObject({ ...expected, body: { ...expected.body, paid: 29 } });
  expect(await pay(app)).toMatchObject({ ...expected, body: { ...expected.body, paid: 0 } });
  expect(original.charges.get('I7')).toBe(1);
});

test('429 means not charged: the invoice is retried later, without manual review', async () => {
  original.delay = 5;
  original.fault = () => 'reject';
  await using app = await startApp(original, { SEED_INVOICES: '30' });
  expect((await pay(app)).body).toMatchObject({ paid: 0, unknown: 0, left: 30 });
  original.fault = undefined;
  expect(await pay(app)).toEqual({ status: 200, body: {} });
  expect(chargedTwice()).toEqual([]);
});

test('an unreachable provider charged nothing either, so the invoice stays open', async () => {
  original.delay = 5;
  await using app = await startApp(original);
  // Lets the app learn that this provider takes no arrays.
  await pay(app);
  await query(app, `INSERT INTO invoices (id, customer_id, amount, currency) VALUES (31, 1, 5, 'EUR')`);
  await original[Symbol.asyncDispose]();
  expect((await pay(app)).body).toMatchObject({ unknown: 0, left: 1 });
  expect(await query(app, open)).toHaveLength(1);
  original = await startOriginal();
});

test('declined invoices are retried and refused ones are not, as at any provider', async () => {
  original.delay = 5;
  const declined = new Set(['I3']);
  original.fault = (id) => (declined.has(id) ? 'decline' : undefined);
  await using app = await startApp(original, { SEED_INVOICES: '30' });
  await query(app, 'UPDATE invoices SET amount = 0 WHERE id = 5');
  expect((await pay(app)).body).toMatchObject({ paid: 28, declined: 1, refused: 1, unknown: 0 });
  declined.clear();
  expect((await pay(app)).body).toMatchObject({ paid: 1, declined: 0, refused: 1, unknown: 0 });
  expect(original.charges.size).toBe(29);
  expect(chargedTwice()).toEqual([]);
});

test('payment-provider announces that it honours keys', async () => {
  await using provider = await startProvider();
  for (const path of ['/payments/pay', '/rest/v1/payments']) {
    const response = await fetch(provider.url + path, { method: 'POST', body: '{}' });
    expect(response.headers.get('Accept-Idempotency-Key')).toBe('true');
  }
});
