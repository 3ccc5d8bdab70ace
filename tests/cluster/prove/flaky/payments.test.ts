import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout } from 'node:timers/promises';
import { Client, Pool } from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { freePort } from '../../../../local/ports.ts';
import { brokenRules } from '../../../payments/rules.ts';
import { ask } from '../../ask.ts';
import { kubectl, pods, paying, until, url } from '../../cluster.ts';

/** The overlay's own invoices, and those added while pods are killed, so that each kill finds unpaid ones. */
const invoices = { first: 1_000, later: 4_000 };
/** The number of kills, the mean pause before one, and the longest delay after new invoices, in milliseconds. */
const kills = { count: 20, pause: 1_500, delay: 200 };
const replicas = 3;
const seed = Number(process.env.SEED ?? Date.now() % 100_000);

let sessions: Awaited<ReturnType<typeof openSessions>>;
beforeAll(async () => {
  await scale(replicas);
  sessions = await openSessions();
});
afterAll(async () => {
  // The tests of other files expect one pod of each service.
  await scale(1);
  await sessions?.close();
});

async function scale(count: number): Promise<void> {
  for (const service of paying) {
    await kubectl('scale', `deployment/${service}`, `--namespace=${service}`, `--replicas=${count}`);
  }
  for (const service of paying) {
    await kubectl('rollout', 'status', `deployment/${service}`, `--namespace=${service}`, '--timeout=120s');
  }
}

/** Opens sessions in both databases, through a port forward to the Postgres pod. */
async function openSessions() {
  const port = await freePort();
  const target = ['--namespace=postgres', 'postgres-0', `${port}:5432`];
  const forward = spawn('kubectl', ['--context=kind-payloop', 'port-forward', ...target]);
  await once(forward.stdout, 'data');
  const readUrl = async (service: string) => {
    const secret = await kubectl(
      'get',
      'secret',
      'database',
      `--namespace=${service}`,
      '--output=jsonpath={.data.url}',
    );
    const address = new URL(Buffer.from(secret, 'base64').toString());
    address.host = `127.0.0.1:${port}`;
    return address.href;
  };
  const appUrl = await readUrl('invoice-app');
  const app = new Client(appUrl);
  const provider = new Client(await readUrl('payment-provider'));
  // Serves concurrent queries.
  const pool = new Pool({ connectionString: appUrl });
  await Promise.all([app.connect(), provider.connect()]);
  const close = async () => {
    await Promise.all([app.end(), provider.end(), pool.end()]);
    forward.kill();
  };
  return { app, provider, pool, close };
}

/** Returns a seeded generator of numbers from 0 to 1: Numerical Recipes, 7.1. */
function createRandom(state: number): () => number {
  let last = state;
  return () => (last = (last * 1_664_525 + 1_013_904_223) % 2 ** 32) / 2 ** 32;
}

function addInvoices(count: number) {
  return sessions.app.query(
    `INSERT INTO invoices (id, customer_id, amount, currency)
     SELECT (SELECT max(id) FROM invoices) + n, 1, 1000 + n, 'EUR' FROM generate_series(1, $1::int) AS n`,
    [count],
  );
}

/** The responses other than 200, 502 (the provider gave no definite answer) and 503 (the database is unavailable). */
const unexpected = new Set<string>();

/**
 * Returns the status of the response, or 0 if the services sent none because a pod was killed. On some networks, a proxy
 * answers for the address of a killed pod. Each request has its own connection, so that none stays with that proxy.
 */
async function post(path: string): Promise<number> {
  try {
    const { status, body, requestId } = await ask(url + path, { method: 'POST', patience: 60_000 });
    // The services' responses have a request id. Those of the development gateway are JSON.
    if (requestId === undefined) JSON.parse(body);
    if (![200, 502, 503].includes(status)) unexpected.add(`${status} ${body}`);
    return status;
  } catch {
    return 0;
  }
}

/** Repeatedly adds invoices and kills a pod shortly after. */
async function killPods(random: () => number): Promise<void> {
  for (let n = 0; n < kills.count; n += 1) {
    await setTimeout(kills.pause * (0.5 + random()));
    await addInvoices(invoices.later / kills.count);
    await setTimeout(kills.delay * random());
    const service = paying[Math.floor(random() * paying.length)]!;
    const alive = await pods(service);
    const victim = alive[Math.floor(random() * alive.length)]?.metadata.name;
    // No grace period: SIGKILL interrupts the pod's work midway.
    if (victim)
      await kubectl('delete', 'pod', victim, `--namespace=${service}`, '--grace-period=0', '--force');
  }
}

async function countUnpaid(): Promise<number> {
  return (await sessions.pool.query('SELECT FROM invoices WHERE paid_at IS NULL')).rowCount ?? 0;
}

test(
  `the rules hold when pods are killed while three replicas of each service pay, with faults on (SEED=${seed})`,
  { timeout: 480_000 },
  async () => {
    expect(await post('/reset')).toBe(200);
    expect(await countUnpaid()).toBe(invoices.first);

    const killing = new AbortController();
    const answers = new Map<number, number>();
    const payUntilDone = async () => {
      while (!killing.signal.aborted || (await countUnpaid()) > 0) {
        const status = await post('/invoices/pay');
        answers.set(status, (answers.get(status) ?? 0) + 1);
        await setTimeout(20);
      }
    };
    const killer = killPods(createRandom(seed)).finally(() => killing.abort());
    await Promise.all([killer, payUntilDone(), payUntilDone(), payUntilDone()]);
    console.log('answers to POST /invoices/pay, by status:', Object.fromEntries(answers));

    expect([...unexpected]).toEqual([]);
    await until('every lease is released', 60, async () => {
      const leased = await sessions.app.query('SELECT FROM batches WHERE leased_until IS NOT NULL');
      return leased.rowCount === 0;
    });
    expect(await brokenRules(sessions)).toEqual([]);
    const paid = await sessions.app.query('SELECT FROM invoices WHERE paid_at IS NOT NULL');
    expect(paid.rowCount).toBe(invoices.first + invoices.later);
  },
);
