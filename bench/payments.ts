// Measures invoices paid per second, compared with plain approaches: `make bench`, COUNT invoices per row.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { Agent } from 'node:http';
import { cpus } from 'node:os';
import { resolve } from 'node:path';
import { Database } from '@payloop/chassis/database.ts';
import { createLog } from '@payloop/chassis/log.ts';
import { toMajorUnits } from '@payloop/chassis/money.ts';
import { step } from '@payloop/chassis/step.ts';
import axios, { type AxiosAdapter } from 'axios';
import { Client } from 'pg';
import { freePort } from '../local/ports.ts';
import { startPostgres } from '../local/postgres.ts';
import { batchSize, migrations, resetInvoices, seed } from '../services/invoice-app/src/invoices.ts';
import { Payments } from '../services/invoice-app/src/payments.ts';
import { Provider, type ProviderOptions } from '../services/invoice-app/src/provider.ts';
import { paying } from '../tests/support/paying.ts';
import { untilReady } from '../tests/support/start-service.ts';

const [appName, providerName] = paying;

const count = Number(process.env.COUNT || 100_000);
/** Fewer invoices for the naive loop, which is too slow for all of them. */
const naiveCount = Math.min(count, 10_000);
/** Invoices paid before the clock starts: a service that has run for a while has compiled its code. */
const warmUp = 5_000;

interface Row {
  name: string;
  invoices: number;
  perSecond: number;
  /** Peak resident memory of the invoice-app side, in MiB. */
  memory: number;
}

/** A way to pay every unpaid invoice. The URL is the provider's. */
type Way = (url: string) => { pay: () => Promise<unknown>; end?: () => Promise<void> };

const say = (text: string) => process.stderr.write(`${text}\n`);

/** Starts a service in its own process. */
async function startService(service: string, databaseUrl: string, env: Record<string, string> = {}) {
  const port = await freePort();
  const child = spawn('node', [`services/${service}/src/main.ts`], {
    cwd: resolve(import.meta.dirname, '..'),
    stdio: ['ignore', 'inherit', 'inherit'],
    env: {
      PATH: process.env.PATH,
      HOST: '127.0.0.1',
      PORT: `${port}`,
      METRICS_PORT: '0',
      ENVIRONMENT: 'dev',
      DATABASE_URL: databaseUrl,
      LOG_LEVEL: 'error',
      ...env,
    },
  });
  const url = `http://127.0.0.1:${port}`;
  await untilReady(url);
  const stop = async () => {
    child.kill();
    await once(child, 'exit');
  };
  return { url, pid: child.pid!, stop };
}

const startProvider = (databaseUrl: string, env: Record<string, string>) =>
  startService(providerName, databaseUrl, env);

class Bench {
  readonly #database: Database;
  readonly #app: Client;
  readonly #ledger: Client;
  readonly #appDatabaseUrl: string;
  readonly #ledgerDatabaseUrl: string;
  readonly rows: Row[] = [];

  constructor(database: Database, appUrl: string, ledgerUrl: string) {
    this.#database = database;
    this.#app = new Client(appUrl);
    this.#ledger = new Client(ledgerUrl);
    this.#appDatabaseUrl = appUrl;
    this.#ledgerDatabaseUrl = ledgerUrl;
  }

  async open(): Promise<void> {
    await Promise.all([this.#database.opened, this.#app.connect(), this.#ledger.connect()]);
    // Applies the ledger's migrations.
    await (await startProvider(this.#ledgerDatabaseUrl, {})).stop();
  }

  async close(): Promise<void> {
    await Promise.all([this.#database.close(), this.#app.end(), this.#ledger.end()]);
  }

  /** Measures one way with fresh data and a fresh provider. */
  async measure(name: string, invoices: number, way: Way, env: Record<string, string> = {}): Promise<Row> {
    const provider = await startProvider(this.#ledgerDatabaseUrl, env);
    const { pay, end } = way(provider.url);
    await this.#fill(warmUp);
    await this.#payAll(pay);
    await this.#fill(invoices);
    let memory = 0;
    const sample = setInterval(() => (memory = Math.max(memory, process.memoryUsage.rss())), 50);
    const progress = setInterval(() => {
      void this.#countUnpaid().then((left) => say(`${name}: ${invoices - left} of ${invoices}`));
    }, 5_000);
    const start = performance.now();
    await this.#payAll(pay);
    const seconds = (performance.now() - start) / 1_000;
    clearInterval(sample);
    clearInterval(progress);
    await end?.();
    await provider.stop();
    const row = {
      name,
      invoices,
      perSecond: Math.round(invoices / seconds),
      memory: Math.round(memory / 2 ** 20),
    };
    say(`${name}: ${row.perSecond} invoices/s`);
    this.rows.push(row);
    return row;
  }

  /** Measures invoice-app's resident memory, in MiB, before and while a client reads every invoice. */
  async measureListing(): Promise<{ before: number; while: number }> {
    // The heap limit of kustomize/service/deployment.yaml.
    const app = await startService(appName, this.#appDatabaseUrl, {
      NODE_OPTIONS: '--max-old-space-size=128',
    });
    const readMemory = () =>
      Number(execFileSync('ps', ['-o', 'rss=', '-p', `${app.pid}`], { encoding: 'utf8' })) / 1024;
    const before = readMemory();
    let peak = before;
    const sample = setInterval(() => (peak = Math.max(peak, readMemory())), 50);
    const response = await fetch(`${app.url}/invoices`);
    await response.body!.pipeTo(new WritableStream());
    clearInterval(sample);
    await app.stop();
    return { before: Math.round(before), while: Math.round(peak) };
  }

  /**
   * Pays until no invoice is unpaid: one run may leave unknown outcomes. Throws if the ledger's charges differ,
   * unless it is empty: the way "limit" sends nothing to the provider.
   */
  async #payAll(pay: () => Promise<unknown>): Promise<void> {
    do await pay();
    while ((await this.#countUnpaid()) > 0);
    const paid = await this.#app.query('SELECT count(*), sum(amount) FROM invoices');
    const charged = await this.#ledger.query('SELECT count(*), sum(amount) FROM payments');
    const [a, b] = [JSON.stringify(paid.rows[0]), JSON.stringify(charged.rows[0])];
    if (a !== b && charged.rows[0].count !== '0')
      throw new Error(`The paid invoices (${a}) differ from the charged ones (${b})`);
  }

  async #fill(invoices: number): Promise<void> {
    await this.#database.transaction((query) => resetInvoices(query, (fill) => seed(fill, invoices)));
    await this.#ledger.query('TRUNCATE payments');
    await this.#app.query('VACUUM ANALYZE');
  }

  async #countUnpaid(): Promise<number> {
    return Number(
      (await this.#app.query('SELECT count(*) FROM invoices WHERE paid_at IS NULL')).rows[0].count,
    );
  }

  /** Pays with the classes that invoice-app uses. */
  ours(options: Partial<ProviderOptions>): Way {
    return (url) => {
      const log = createLog('bench', 'silent');
      const provider = new Provider({ url: `${url}/payments/pay`, log, step, ...options });
      const payments = new Payments({ database: this.#database, provider, holder: 'bench', step, log });
      return { pay: () => payments.pay('bench'), end: () => payments.stop() };
    };
  }

  /** Sends one request and one UPDATE at a time. */
  naive: Way = (url) => {
    const http = axios.create({ httpAgent: new Agent({ keepAlive: true }), proxy: false });
    const pay = async () => {
      const { rows } = await this.#app.query(
        'SELECT id, amount, currency FROM invoices WHERE paid_at IS NULL',
      );
      for (const { id, amount, currency } of rows) {
        await http.post(`${url}/payments/pay`, {
          id: `I${id}`,
          value: toMajorUnits(Number(amount), currency),
          currency,
        });
        await this.#database.query('UPDATE invoices SET paid_at = now() WHERE id = $1', [id]);
      }
    };
    return { pay };
  };

  /** The database alone, with no provider and no history. */
  limit: Way = () => {
    const payBatch = () =>
      this.#database.transaction(async (query) => {
        const { rows } = await query<{ id: number }>(
          'SELECT id FROM invoices WHERE paid_at IS NULL ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED',
          [batchSize],
        );
        const ids = rows.map(({ id }) => id);
        await query('UPDATE invoices SET paid_at = now() WHERE id = ANY ($1::bigint[])', [ids]);
        return ids.length;
      });
    return {
      pay: async () => {
        while ((await payBatch()) > 0);
      },
    };
  };
}

async function main(): Promise<void> {
  const postgres = await startPostgres({ databases: ['invoice_app', 'payment_provider'], durable: true });
  const log = createLog('bench', 'error');
  const database = new Database({ url: postgres.url('invoice_app'), migrations, log, service: 'bench' });
  const bench = new Bench(database, postgres.url('invoice_app'), postgres.url('payment_provider'));
  await bench.open();
  try {
    const naive = await bench.measure(
      'naive: an axios request (Node agent) and an UPDATE each',
      naiveCount,
      bench.naive,
    );
    const limit = await bench.measure(
      `limit: SELECT FOR UPDATE SKIP LOCKED and UPDATE by ${batchSize}, no provider`,
      count,
      bench.limit,
    );
    // axios also accepts the name of a built-in adapter.
    const adapter = 'http' as unknown as AxiosAdapter;
    await bench.measure(
      'one request each, axios with Node agent',
      count,
      bench.ours({ arrays: false, adapter }),
    );
    const single = await bench.measure(
      'one request each, axios over undici',
      count,
      bench.ours({ arrays: false }),
    );
    const arrays = await bench.measure(`arrays of ${batchSize}, axios over undici`, count, bench.ours({}));
    await bench.measure(`arrays of ${batchSize}, 20 % faults`, count, bench.ours({}), {
      FAULTS: 'fail=0.08,silent=0.01,late=0.01,duplicate=0.05,reset=0.05',
      FAULT_SEED: '1',
    });
    await bench.measure(`arrays of ${batchSize}, ten times as many`, 10 * count, bench.ours({}));

    const listing = await bench.measureListing();
    const ratio = (a: Row, b: Row) => Number((a.perSecond / b.perSecond).toFixed(2));
    const [cpu] = cpus();
    const lines = bench.rows.map((row) =>
      ['', row.name, row.invoices, row.perSecond, ratio(row, naive), ratio(row, limit), row.memory, '']
        .join(' | ')
        .trim(),
    );
    process.stdout
      .write(`${cpus().length} cores, ${cpu?.model.trim()}, Node ${process.version}, Postgres on the same machine

| way | invoices | invoices/s | to naive | to limit | memory, MiB |
| --- | ---: | ---: | ---: | ---: | ---: |
${lines.join('\n')}

GET /invoices of ${10 * count}: invoice-app takes ${listing.before} MiB before, ${listing.while} MiB while it streams them

${JSON.stringify({
  perRequestVsNaive: ratio(single, naive),
  batchVsNaive: ratio(arrays, naive),
  batchVsLimit: ratio(arrays, limit),
})}
`);
  } finally {
    await bench.close();
    await postgres.stop();
  }
}

await main();
