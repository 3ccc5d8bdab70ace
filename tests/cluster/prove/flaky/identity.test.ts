import { setTimeout } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { kubectl, pods, restarts, runScript, paying, sql, until, url, type Pod } from '../../cluster.ts';

/** How many invoices come in before each pay, and how long after the last one, in milliseconds. */
const trickle = { invoices: 3, pause: 1_000 };
/** Tokens last 600 s; the kubelet makes the next one after 480 s, and takes up to two minutes to put it in place. */
const longest = 660_000;
/** How long to go on once the first token has run out, in milliseconds: more than the provider's tolerance. */
const afterwards = 15_000;

/** When the token in a pod was made, and when it runs out, in seconds since 1970. */
async function readToken({ metadata }: Pod): Promise<{ iat: number; exp: number }> {
  const script = `
    import { readFileSync } from 'node:fs';
    const token = readFileSync('/run/secrets/identity/token', 'utf8');
    console.log(Buffer.from(token.split('.')[1], 'base64url').toString());`;
  return JSON.parse(await runScript('invoice-app', `pod/${metadata.name}`, script));
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

/** The lines of both services' logs since then that tell of a token that was missing or refused. */
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
  'the kubelet replaces the tokens while invoices are paid: none is refused',
  { timeout: 900_000 },
  async () => {
    const since = new Date().toISOString();
    const before = await pods('invoice-app');
    const old = await Promise.all(before.map(readToken));
    const answers = new Map<number, number>();
    const end = performance.now() + longest;
    const isOver = async () => {
      if (Date.now() < Math.max(...old.map(({ exp }) => exp)) * 1_000 + afterwards) return false;
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
    // The same processes all along: none of them began with the new token.
    const after = await pods('invoice-app');
    expect(after.map(({ metadata }) => metadata.uid)).toEqual(before.map(({ metadata }) => metadata.uid));
    expect(after.map(restarts)).toEqual(before.map(restarts));
  },
);
