import { setTimeout } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { kubectl, pods, restarts, runScript, paying, sql, until, url, type Pod } from '../../cluster.ts';

/** The number of invoices added before each pay request, and the pause after it, in milliseconds. */
const trickle = { invoices: 3, pause: 1_000 };
/**
 * The time limit in milliseconds. Tokens last 600 s. The kubelet requests the next one after 480 s, and takes up to two
 * minutes to put it in place.
 */
const timeLimit = 660_000;
/** The time to continue after the old tokens expire, in milliseconds: longer than the provider's tolerance. */
const afterExpiry = 15_000;

/** Reads the issue time and the expiry time of the token in a pod, in seconds since 1970. */
async function readToken({ metadata }: Pod): Promise<{ iat: number; exp: number }> {
  const script = `
    import { readFileSync } from 'node:fs';
    const token = readFileSync('/run/secrets/identity/token', 'utf8');
    console.log(Buffer.from(token.split('.')[1], 'base64url').toString());`;
  return JSON.parse(await runScript('invoice-app', script, metadata.name));
}

async function pay(): Promise<number> {
  const values = `SELECT (SELECT max(id) FROM invoices) + n, 1, 1000 + n, 'EUR' FROM generate_series(1, ${trickle.invoices}) AS n`;
  await sql('invoice_app', `INSERT INTO invoices (id, customer_id, amount, currency) ${values}`);
  const response = await fetch(`${url}/invoices/pay`, {
    method: 'POST',
    signal: AbortSignal.timeout(60_000),
  });
  await response.text();
  return response.status;
}

const countUnpaid = async () =>
  Number(await sql('invoice_app', 'SELECT count(*) FROM invoices WHERE paid_at IS NULL'));

/** Returns the log lines of both services since a time that report a missing or refused token. */
async function findRefusals(since: string): Promise<string[]> {
  const lines = [];
  for (const service of paying) {
    for (const { metadata } of await pods(service)) {
      const log = await kubectl('logs', metadata.name, `--namespace=${service}`, `--since-time=${since}`);
      lines.push(...log.split('\n'));
    }
  }
  expect(lines.length).toBeGreaterThan(100);
  return lines.filter((line) =>
    /refused the token|was not called|was refused|no token can be checked/.test(line),
  );
}

test(
  'no token is refused when the kubelet replaces them while invoices are paid',
  { timeout: 900_000 },
  async () => {
    const since = new Date().toISOString();
    const before = await pods('invoice-app');
    const old = await Promise.all(before.map(readToken));
    const answers = new Map<number, number>();
    const end = performance.now() + timeLimit;
    const isOver = async () => {
      if (Date.now() < Math.max(...old.map(({ exp }) => exp)) * 1_000 + afterExpiry) return false;
      const now = await Promise.all(before.map(readToken));
      return now.every(({ iat }, index) => iat > old[index]!.iat);
    };
    while (!(await isOver())) {
      if (performance.now() > end) throw new Error('the kubelet did not replace the tokens');
      const status = await pay();
      answers.set(status, (answers.get(status) ?? 0) + 1);
      await setTimeout(trickle.pause);
    }
    console.log('answers to POST /invoices/pay, by status:', Object.fromEntries(answers));

    expect(await findRefusals(since)).toEqual([]);
    await until('every invoice is paid', 60, async () => {
      await pay();
      return (await countUnpaid()) === 0;
    });
    // The processes are still the same, so none of them started with the new token.
    const after = await pods('invoice-app');
    expect(after.map(({ metadata }) => metadata.uid)).toEqual(before.map(({ metadata }) => metadata.uid));
    expect(after.map(restarts)).toEqual(before.map(restarts));
  },
);
