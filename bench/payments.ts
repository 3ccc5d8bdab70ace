// How many invoices are paid a second, and what that is next to the plain ways: `make bench`.
//   tsx bench/payments.ts [INVOICES]
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { Agent } from 'node:http';
import { cpus } from 'node:os';
import { resolve } from 'node:path';
import axios, { type AxiosAdapter } from 'axios';
import { Client } from 'pg';
import { Database } from '@payloop/kit/database.ts';
import { createLog } from '@payloop/kit/log.ts';
import { step } from '@payloop/kit/step.ts';
import { freePort } from '../local/ports.ts';
import { startPostgres } from '../local/postgres.ts';
import { batchSize, migrations, resetInvoices } from '../services/invoice-app/src/invoices.ts';
import { Payments } from '../services/invoice-app/src/pay.ts';
import { Provider } from '../services/invoice-app/src/provider.ts';

const root = resolve(import.meta.dirname, '..');
const log = createLog('bench', 'error');
const count = Number(process.argv[2] ?? 100_000);

interface Row {
  name: string;
  invoices: number;
  perSecond: number;
  /** Resident memory at its largest, in MB. */
  memory: number;
}

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** payment-provider as a process of its own. */
async function startProvider(databaseUrl: string, env: Record<string, string> = {}) {
  const port = await freePort();
  const child = spawn('node', ['services/payment-provider/src/main.ts'], {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
    env: {
      PATH: process.env.PATH,
      HOST: '127.0.0.1',
      PORT: `${port}`,
      DATABASE_URL: databaseUrl,
      ALLOW_RESET: 'true',
      LOG_LEVEL: 'error',
      ...env,
    },
  });
  const url = `http://127.0.0.1:${port}`;
  while (
    !(await fetch(`${url}/readyz`).then(
      (response) => response.ok,
      () => false,
    ))
  ) {
    await new Promise((wait) => setTimeout(wait, 20));
  }
  return { url, stop: () => end(child) };
}

async function end(child: ChildProcess): Promise<void> {
  child.kill();
  await once(child, 'exit');
}

/** Times `work`, says how far it is while it runs, and how much memory this process took. */
async function measure(
  name: string,
  invoices: number,
  countPaid: () => Promise<number>,
  work: () => Promise<unknown>,
): Promise<Row> {
  globalThis.gc?.();
  let memory = 0;
  const sample = setInterval(() => (memory = Math.max(memory, process.memoryUsage.rss())), 50);
  const progress = setInterval(() => {
    void countPaid().then((paid) => say(`${name}: ${paid} of ${invoices}`));
  }, 2_000);
  const start = performance.now();
  await work();
  const seconds = (performance.now() - start) / 1_000;
  clearInterval(sample);
  clearInterval(progress);
  const row = {
    name,
    invoices,
    perSecond: Math.round(invoices / seconds),
    memory: Math.round(memory / 2 ** 20),
  };
  say(`${name}: ${row.perSecond} invoices/s`);
  return row;
}

async function main(): Promise<void> {
  const postgres = await startPostgres({ databases: ['invoice_app', 'payment_provider'], durable: true });
  const database = new Database({ url: postgres.url('invoice_app'), migrations, log, service: 'bench' });
  await database.opened;
  const admin = new Client({ connectionString: postgres.url('invoice_app') });
  const ledger = new Client({ connectionString: postgres.url('payment_provider') });
  await Promise.all([admin.connect(), ledger.connect()]);
  const countPaid = async () =>
    Number((await admin.query('SELECT count(*) FROM invoices WHERE paid_at IS NOT NULL')).rows[0].count);
  const rows: Row[] = [];
  // Brings its schema up to date.
  await (await startProvider(postgres.url('payment_provider'))).stop();

  const fill = async (invoices: number) => {
    await database.transaction((query) => resetInvoices(query, invoices));
    await ledger.query('TRUNCATE payments');
    await admin.query('VACUUM ANALYZE');
  };

  /** Our way, through the classes that invoice-app itself runs. */
  const ours = async (
    name: string,
    invoices: number,
    options: { arrays: boolean; adapter?: AxiosAdapter },
    env: Record<string, string> = {},
  ) => {
    await fill(invoices);
    const target = await startProvider(postgres.url('payment_provider'), env);
    const provider = new Provider({
      url: `${target.url}/payments/pay`,
      log: createLog('bench', 'silent'),
      ...options,
    });
    const payments = new Payments({ database, provider, holder: 'bench', step, log });
    const row = await measure(name, invoices, countPaid, async () => {
      for (let left = 1; left > 0; left = invoices - (await countPaid())) {
        if (env.FAULTS !== undefined)
          await admin.query(
            `UPDATE batches SET leased_until = now() - interval '1 s' WHERE leased_until IS NOT NULL AND holder IS NULL`,
          );
        await payments.pay('bench');
      }
    });
    await payments.stop();
    await target.stop();
    await check(invoices);
    rows.push(row);
    return row;
  };

  /** Every invoice charged once, with its amount: a figure for anything else would be of no use. */
  const check = async (invoices: number) => {
    const paid = await admin.query(`SELECT count(*), sum(amount) FROM invoices WHERE paid_at IS NOT NULL`);
    const charged = await ledger.query(
      `SELECT count(*), sum(amount) FROM payments WHERE outcome = 'charged'`,
    );
    const [a, b] = [paid.rows[0], charged.rows[0]];
    if (Number(a.count) !== invoices || a.count !== b.count || a.sum !== b.sum) {
      throw new Error(`${JSON.stringify(a)} were paid and ${JSON.stringify(b)} charged of ${invoices}`);
    }
  };

  const naive = async (invoices: number) => {
    await fill(invoices);
    const target = await startProvider(postgres.url('payment_provider'));
    const http = axios.create({ httpAgent: new Agent({ keepAlive: true }), proxy: false });
    const { rows: unpaid } = await admin.query(
      'SELECT id, amount, currency FROM invoices WHERE paid_at IS NULL',
    );
    const row = await measure(
      'naive loop: one axios request (Node agent), one UPDATE',
      invoices,
      countPaid,
      async () => {
        for (const { id, amount, currency } of unpaid) {
          await http.post(`${target.url}/payments/pay`, { id: `I${id}`, value: amount / 100, currency });
          await database.query('UPDATE invoices SET paid_at = now() WHERE id = $1', [id]);
        }
      },
    );
    await target.stop();
    rows.push(row);
    return row;
  };

  const limit = async (invoices: number) => {
    await fill(invoices);
    const row = await measure(
      `limit: SELECT FOR UPDATE SKIP LOCKED and UPDATE, ${batchSize} at a time, no provider`,
      invoices,
      countPaid,
      async () => {
        for (;;) {
          const done = await database.transaction(async (query) => {
            const claimed = await query<{ id: number }>(
              'SELECT id FROM invoices WHERE paid_at IS NULL ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED',
              [batchSize],
            );
            if (claimed.rows.length === 0) return true;
            await query('UPDATE invoices SET paid_at = now() WHERE id = ANY ($1::bigint[])', [
              claimed.rows.map(({ id }) => id),
            ]);
            return false;
          });
          if (done) return;
        }
      },
    );
    rows.push(row);
    return row;
  };

  try {
    const slow = await naive(Math.min(count, 10_000));
    const top = await limit(count);
    await ours('one request an invoice, axios with Node agent', count, {
      arrays: false,
      adapter: 'http' as unknown as AxiosAdapter,
    });
    const single = await ours('one request an invoice, axios over undici', count, { arrays: false });
    const arrays = await ours('arrays of 1,000, axios over undici', count, { arrays: true });
    await ours(
      'arrays of 1,000, 20 % faults',
      count,
      { arrays: true },
      { FAULTS: 'fail=0.08,silent=0.02,late=0.02,duplicate=0.04,reset=0.04' },
    );
    if (count >= 100_000) await ours('arrays of 1,000, a million invoices', 10 * count, { arrays: true });

    const ratio = (a: Row, b: Row) => Number((a.perSecond / b.perSecond).toFixed(2));
    say(`\n${cpus().length} cores, ${cpus()[0]?.model}\n`);
    process.stdout.write(
      '| way | invoices | invoices/s | to naive | memory MB |\n| --- | ---: | ---: | ---: | ---: |\n',
    );
    for (const row of rows) {
      process.stdout.write(
        `| ${row.name} | ${row.invoices} | ${row.perSecond} | ${ratio(row, slow)} | ${row.memory} |\n`,
      );
    }
    process.stdout.write(
      `${JSON.stringify({ perRequestVsNaive: ratio(single, slow), batchVsNaive: ratio(arrays, slow), batchVsLimit: ratio(arrays, top) })}\n`,
    );
  } finally {
    await Promise.all([admin.end(), ledger.end(), database.close()]);
    await postgres.stop();
  }
}

await main();
