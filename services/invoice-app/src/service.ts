import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { ConfigError, describe, integer, must, readConfig } from '@payloop/kit/config.ts';
import { Database, isLockTimeout } from '@payloop/kit/database.ts';
import { HttpError } from '@payloop/kit/http-error.ts';
import { createLog } from '@payloop/kit/log.ts';
import { Metrics } from '@payloop/kit/metrics.ts';
import type { Self } from '@payloop/kit/run.ts';
import { requestId, route, startServer, type Running } from '@payloop/kit/server.ts';
import { step as direct } from '@payloop/kit/step.ts';
import type { Request, Response } from 'express';
import { z } from 'zod';
import { readOldestLease } from './batches.ts';
import {
  countUnpaid,
  listInvoices,
  migrations,
  parseInvoiceName,
  resetInvoices,
  seed,
  toContract,
  type ListedInvoice,
} from './invoices.ts';
import { Overview } from './overview.ts';
import { addPage, guard } from './page.ts';
import { Payments } from './pay.ts';
import { Progress } from './progress.ts';
import { everyOutcome, Provider } from './provider.ts';

const service = 'invoice-app';

const defaultProviderUrl = 'http://payment-provider:8082/payments/pay';
const providerUrl = z
  .string()
  .refine(
    (url) => /^https?:$/.test(URL.parse(url)?.protocol ?? ''),
    must(`a full URL such as ${defaultProviderUrl}`),
  )
  .optional();

const variables = {
  PORT: integer(0, 65_535).default(8081),
  PAYMENT_PROVIDER_URL: providerUrl,
  PAYMENT_PROVIDER_ENDPOINT: providerUrl,
  SEED_INVOICES: integer(0, 1_000_000).default(3),
  TOKEN_FILE: z.string().optional(),
};

/**
 * Starts the service that keeps invoices and pays them.
 * @throws {ConfigError} when a variable or the port cannot be used
 */
export async function start({ env, source, instance, step = direct }: Self): Promise<Running> {
  const config = readConfig(variables, env);
  const { PAYMENT_PROVIDER_URL: url, PAYMENT_PROVIDER_ENDPOINT: endpoint } = config;
  if (url !== undefined && endpoint !== undefined && url !== endpoint) {
    throw new ConfigError(
      'PAYMENT_PROVIDER_URL must be the same as PAYMENT_PROVIDER_ENDPOINT where both are set',
    );
  }
  const log = createLog(service, config.LOG_LEVEL);
  const provider = new Provider({
    url: url ?? endpoint ?? defaultProviderUrl,
    tokenFile: config.TOKEN_FILE,
    log,
    step,
  });
  const database = new Database({
    service,
    url: config.databaseUrl,
    migrations,
    seed: (query) => seed(query, config.SEED_INVOICES),
    log,
  });
  const metrics = new Metrics(database);
  metrics.measure('unpaid_invoices', 'Invoices that are not paid.', () => countUnpaid(database));
  metrics.measure('oldest_lease_age_seconds', 'How long ago the oldest lease was given or renewed.', () =>
    readOldestLease(database),
  );
  const count = metrics.count('payments_total', 'Answers of the provider.', 'outcome', everyOutcome);
  const payments = new Payments({ database, provider, holder: instance, step, log, count });
  const overview = new Overview(database);
  const progress = new Progress(overview, log);
  const options = {
    host: config.HOST,
    port: config.PORT,
    shutdownDelay: config.SHUTDOWN_DELAY_MS,
    database,
    metrics,
    metricsPort: config.METRICS_PORT,
    stopWork: async () => {
      await Promise.all([progress.stop(), payments.stop()]);
    },
    log,
  };
  const running = await startServer(options, (app) => {
    app.use(guard);
    addPage(app, overview, progress);
    route(app, '/version', {
      get: async (_request, response) => {
        response.json({ service, source, instance, provider: await provider.version() });
      },
    });
    route(app, '/invoices', { get: (request, response) => sendInvoices(database, request, response) });
    route(app, '/invoices/pay', {
      // The body is never read: clients send none, a form, or broken JSON.
      post: async (_request, response) => {
        progress.attend();
        const tally = await payments.pay(requestId(response)).finally(() => progress.attend());
        if (tally.unknown === 0) response.json({});
        else response.status(502).json({ error: 'the payment provider gave no definite answer', ...tally });
      },
    });
    if (config.ALLOW_RESET) {
      route(app, '/reset', {
        post: async (_request, response) => {
          await reset(database, provider, config.SEED_INVOICES);
          response.json({});
        },
      });
    }
  });
  payments.startRecovery();
  return running;
}

/** How long a reset waits for runs under way, and how often it looks, in milliseconds. */
const resetWait = { most: 20_000, step: 50 };

/** Makes the data of both services anew, once no run is under way on any replica. */
async function reset(database: Database, provider: Provider, count: number): Promise<void> {
  for (const end = performance.now() + resetWait.most; performance.now() < end; await sleep(resetWait.step)) {
    if (await resetIfIdle(database, provider, count)) return;
  }
  throw new HttpError(503, 'a payment run is under way, try again later');
}

async function resetIfIdle(database: Database, provider: Provider, count: number): Promise<boolean> {
  try {
    return await database.transaction(async (query) => {
      // Until this commits nobody can claim a batch.
      await query('LOCK TABLE batches');
      const { rows } = await query(
        'SELECT FROM batches WHERE holder IS NOT NULL AND leased_until >= now() LIMIT 1',
      );
      if (rows.length > 0) return false;
      await provider.reset();
      await resetInvoices(query, count);
      return true;
    });
  } catch (error) {
    if (isLockTimeout(error)) return false;
    throw error;
  }
}

/** What may be asked of `GET /invoices`. */
const invoiceQuery = z.object({
  status: z.enum(['paid', 'unpaid'], must('paid or unpaid')).optional(),
  limit: integer(1, 1_000_000).optional(),
  after: z
    .string()
    .refine((name) => parseInvoiceName(name) !== undefined, must('the id of an invoice, such as I1'))
    .transform(parseInvoiceName)
    .optional(),
});

/** Streams the invoices as one JSON array, as fast as the client reads. */
async function sendInvoices(database: Database, request: Request, response: Response): Promise<void> {
  const query = invoiceQuery.safeParse(request.query);
  if (!query.success) throw new HttpError(400, describe(query.error));
  const { status, limit, after } = query.data;
  const text = toJson(listInvoices(database, { paid: status && status === 'paid', limit, after }));
  // A database that is away shows at the first page, when the status can still be another.
  const opening = await text.next();
  response.type('json').write(opening.value);
  await pipeline(text, response);
}

async function* toJson(pages: AsyncIterable<ListedInvoice[]>): AsyncGenerator<string> {
  let separator = '[';
  for await (const invoices of pages) {
    yield separator + invoices.map((invoice) => JSON.stringify(toContract(invoice))).join(',');
    separator = ',';
  }
  yield separator === '[' ? '[]' : ']';
}
