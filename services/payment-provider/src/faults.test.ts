import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { ConfigError } from '@payloop/chassis/config.ts';
import { Client } from 'pg';
import { describe, expect, test } from 'vitest';
import { startService, type RunningService } from '../../../tests/support/start-service.ts';
import { Faults, lateness } from './faults.ts';
import * as paymentProvider from './service.ts';

const startFaulty = (FAULTS: string, env: Record<string, string> = {}) =>
  startService(paymentProvider, { FAULTS, FAULT_SEED: '1', ...env });

/** Posts a payment. Returns undefined if no answer comes. */
const pay = ({ url }: RunningService, key: string, signal?: AbortSignal, id = 'I1') =>
  fetch(`${url}/payments/pay`, {
    method: 'POST',
    body: JSON.stringify({ id, value: 12.15, currency: 'EUR' }),
    headers: { 'Idempotency-Key': key },
    ...(signal && { signal }),
  }).catch(() => undefined);

async function countCharges({ databaseUrl }: RunningService): Promise<number> {
  const client = new Client({ connectionString: databaseUrl });
  await client.connect();
  try {
    return (await client.query('SELECT FROM payments')).rows.length;
  } finally {
    await client.end();
  }
}

describe('a request', () => {
  test('fails before anything is charged', async () => {
    await using faulty = await startFaulty('fail=1');
    expect((await pay(faulty, 'a'))?.status).toBe(500);
    expect(await countCharges(faulty)).toBe(0);
  });

  test('is charged and never answered', { timeout: 20_000, tags: ['slow'] }, async () => {
    await using faulty = await startFaulty('silent=1');
    expect(await pay(faulty, 'a', AbortSignal.timeout(lateness + 500))).toBeUndefined();
    expect(await countCharges(faulty)).toBe(1);
  });

  test('is charged and answered late', async () => {
    await using faulty = await startFaulty('late=1');
    const start = performance.now();
    expect((await pay(faulty, 'a'))?.status).toBe(200);
    expect(performance.now() - start).toBeGreaterThanOrEqual(lateness - 1);
  });

  test('arrives twice and is charged once', async () => {
    await using faulty = await startFaulty('duplicate=1');
    expect((await pay(faulty, 'a'))?.status).toBe(200);
    expect(await countCharges(faulty)).toBe(1);
  });

  test('is charged and its connection is reset', async () => {
    await using faulty = await startFaulty('reset=1');
    expect(await pay(faulty, 'a')).toBeUndefined();
    expect(await countCharges(faulty)).toBe(1);
  });
});

test('a seed fails the same requests in any order, and another seed fails others', async () => {
  const ids = Array.from({ length: 40 }, (_, n) => `I${n}`);
  const run = async (seed: string, order: string[]) => {
    await using faulty = await startFaulty('fail=0.5', { FAULT_SEED: seed, FAILURE_RATE: '0.5' });
    const answers = new Map<string, number[]>();
    for (const id of [...order, ...order]) {
      const status = (await pay(faulty, `${id} ${answers.get(id)?.length}`, undefined, id))!.status;
      answers.set(id, [...(answers.get(id) ?? []), status]);
    }
    return ids.map((id) => answers.get(id)!.join());
  };
  const first = await run('1', ids);
  expect(await run('1', ids.toReversed())).toEqual(first);
  expect(await run('2', ids)).not.toEqual(first);
  expect(new Set(first.join().split(','))).toEqual(new Set(['200', '402', '500']));
});

test('each rate is a share of the requests', () => {
  const faults = new Faults([['fail', 0.1], ['late', 0.3]], 0, 1); // prettier-ignore
  const drawn = Array.from({ length: 10_000 }, (_, n) => faults.draw(`I${n}`));
  const share = (kind?: string) => drawn.filter((fault) => fault === kind).length / drawn.length;
  expect(share('fail')).toBeCloseTo(0.1, 1);
  expect(share('late')).toBeCloseTo(0.3, 1);
  expect(share()).toBeCloseTo(0.6, 1);
});

/** Returns the size of the heap in bytes after a garbage collection. */
function measureHeap(): number {
  setFlagsFromString('--expose-gc');
  runInNewContext('gc')();
  return process.memoryUsage().heapUsed;
}

test.each([
  ['100,000 payments', 100_000, ''],
  ['ids of 100 kB', 500, 'x'.repeat(100_000)],
])('drawing faults for %s takes no further memory and keeps the odds', (_name, count, suffix) => {
  const faults = new Faults([['fail', 0.5]], 0.5, 1);
  let declined = 0;
  const before = measureHeap();
  for (let n = 0; n < count; n += 1) {
    // A new string each time, as from a request.
    const id = Buffer.from(`I${n}${suffix}`).toString();
    faults.draw(id);
    if (faults.declines(id)) declined += 1;
  }
  // Keeping a number for each id would take some 18 MB, or 100 MB for the long ids.
  expect(measureHeap() - before).toBeLessThan(8_000_000);
  // Keeps `faults` from being collected before the heap is measured.
  expect(faults).toBeInstanceOf(Faults);
  expect(declined / count).toBeCloseTo(0.5, 1);
});

test('a declined payment is charged after enough retries, however many others come in between', () => {
  const faults = new Faults([], 0.5, 1);
  const left = new Set(Array.from({ length: 2_000 }, (_, n) => `I${n}`));
  for (let run = 0; run < 40; run += 1) {
    for (const id of left) if (!faults.declines(id)) left.delete(id);
    for (let n = 0; n < 5_000; n += 1) faults.declines(`other ${run} ${n}`);
  }
  expect(left.size).toBe(0);
});

const rule =
  'FAULTS must be a list such as fail=0.1,late=0.05 of fail, silent, late, duplicate, reset, together at most 1';

test.each([
  ['an unknown kind', 'explode=0.1'],
  ['no rate', 'fail'],
  ['an empty rate', 'fail='],
  ['a rate that is not a number', 'fail=often'],
  ['a rate that is not finite', 'fail=Infinity'],
  ['a negative rate', 'fail=-0.1'],
  ['a rate over 1', 'fail=1.1'],
  ['rates over 1 together', 'fail=0.6,late=0.6'],
  ['an empty part', 'fail=0.1,'],
])('FAULTS with %s prevents the start', async (_name, FAULTS) => {
  const error = `${rule}, not ${JSON.stringify(FAULTS)}`;
  await expect(start({ FAULTS })).rejects.toEqual(new ConfigError(error));
});

test('FAULTS are refused if ENVIRONMENT is not set', async () => {
  const error = new ConfigError('FAULTS must not be set when ENVIRONMENT is unset (default: prod)');
  await expect(start({ FAULTS: 'fail=0', ENVIRONMENT: '' })).rejects.toEqual(error);
});

test('FAULTS are refused in prod, even at a rate of 0', async () => {
  const error = new ConfigError('FAULTS must not be set when ENVIRONMENT is prod');
  await expect(start({ FAULTS: 'fail=0', ENVIRONMENT: 'prod' })).rejects.toEqual(error);
});

/** Starts without a database: settings are checked before it is needed. */
const start = (env: Record<string, string>) =>
  paymentProvider.start({
    source: '',
    instance: '',
    env: {
      DATABASE_URL: 'postgres://nobody@127.0.0.1:1/none',
      ENVIRONMENT: 'dev',
      PORT: '0',
      LOG_LEVEL: 'silent',
      ...env,
    },
  });
