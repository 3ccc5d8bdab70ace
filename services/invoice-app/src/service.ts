import { ConfigError, describe, httpUrl, integer, readConfig } from '@payloop/chassis/config.ts';
import { Database, type Query } from '@payloop/chassis/database.ts';
import { HttpError } from '@payloop/chassis/http-error.ts';
import { createLog } from '@payloop/chassis/log.ts';
import { Metrics } from '@payloop/chassis/metrics.ts';
import type { Self } from '@payloop/chassis/self.ts';
import { requestId, route, startServer, type Running } from '@payloop/chassis/server.ts';
import { step as direct } from '@payloop/chassis/step.ts';
import type { Handler, Request, Response } from 'express';
import { z } from 'zod';
import { addAntaeusRoutes } from './antaeus.ts';
import * as description from './description.ts';
import { readOldestLease } from './batches.ts';
import {
  countRefused,
  countUnpaid,
  countUnsettled,
  hasUnpaid,
  listInvoices,
  migrations,
  seed,
  toContract,
} from './invoices.ts';
import { Overview } from './overview.ts';
import { addPage } from './page.ts';
import { createListLimit, sendPages } from './pagination.ts';
import { batchStates, Payments } from './payments.ts';
import { Progress } from './progress.ts';
import { Resets } from './reset.ts';
import { everyOutcome, Provider } from './provider.ts';

const service = 'invoice-app';

/**
 * The maximum number of connections to Postgres. Payments and recovery have their own, one for each batch in flight, so
 * that readers never keep an invoice from being paid. With the connection of the readiness check they are ten, see
 * k8s/local/postgres.
 */
const connections = { payments: 6, others: 3 };

const defaultProviderUrl = 'http://payment-provider:8082/payments/pay';
const providerUrl = httpUrl(defaultProviderUrl).optional();

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
export async function start(self: Self): Promise<Running> {
  const { env, instance, step = direct } = self;
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
  const fill = (query: Query) => seed(query, config.SEED_INVOICES);
  const database = new Database({
    service,
    url: config.databaseUrl,
    migrations,
    seed: fill,
    log,
    max: connections.others,
  });
  const forPayments = database.partition(connections.payments);
  const metrics = new Metrics(database);
  metrics.createGauge('unpaid_invoices', 'Invoices that are not paid.', () => countUnpaid(database));
  metrics.createGauge(
    'refused_invoices',
    'Invoices that the provider refused, until somebody changes them.',
    () => countRefused(database),
  );
  metrics.createGauge(
    'unsettled_invoices',
    'Invoices with an unknown outcome at a provider without keys, until somebody settles them.',
    () => countUnsettled(database),
  );
  metrics.createGauge('oldest_lease_age_seconds', 'Time since the oldest lease was granted or renewed.', () =>
    readOldestLease(database),
  );
  const countOutcomes = metrics.createCounter(
    'payments_total',
    'Payments by outcome, counted again for each retry.',
    'outcome',
    everyOutcome,
  );
  const countClaim = metrics.createCounter('batch_claims_total', 'Batches claimed.', 'found', batchStates);
  const resets = new Resets({ database: forPayments, provider, seed: fill, step });
  const payments = new Payments({
    resets,
    database: forPayments,
    provider,
    holder: instance,
    step,
    log,
    countOutcomes,
    countClaim,
  });
  const overview = new Overview(database);
  const progress = new Progress(overview, log);
  const options = {
    service,
    self,
    config,
    database,
    metrics,
    version: {
      read: async (signal: AbortSignal) => ({ provider: await provider.version(signal) }),
      describe: description.describeVersion,
    },
    stopWork: async () => {
      await Promise.all([progress.stop(), payments.stop()]);
    },
    log,
  };
  const running = await startServer(options, (app) => {
    addPage(app, overview, progress, config.ALLOW_RESET);
    const invoices: Handler = (request, response) => sendInvoices(database, request, response);
    const listLimit = createListLimit();
    route(app, '/invoices', { get: [listLimit, invoices] }, description.describeInvoices);
    const payAll = (response: Response) => {
      progress.attend();
      return payments.pay(requestId(response)).finally(() => progress.attend());
    };
    // The body is never read: clients send none, a form, or broken JSON.
    const pay: Handler = async (_request, response) => {
      const tally = await payAll(response);
      const shortfall = description.describeShortfall(tally);
      if (shortfall === undefined) response.json({});
      else response.status(502).json({ error: shortfall, ...tally } satisfies description.Unreliable);
    };
    route(app, '/invoices/pay', { post: pay }, description.describePay);
    addAntaeusRoutes(app, {
      database,
      listLimit,
      payAll: async (response) => {
        await payAll(response);
        // Not the result of this run: another replica may be paying, and new invoices arrive.
        return !(await hasUnpaid(forPayments));
      },
    });
    if (config.ALLOW_RESET) {
      const answerReset: Handler = async (_request, response) => {
        await resets.reset();
        response.json({});
      };
      route(app, '/reset', { post: answerReset }, description.describeReset);
    }
  });
  payments.startRecovery();
  return running;
}

async function sendInvoices(database: Database, request: Request, response: Response): Promise<void> {
  const query = description.invoiceQuery.safeParse(request.query);
  if (!query.success) throw new HttpError(400, describe(query.error));
  const { status, limit, after } = query.data;
  const pages = listInvoices(database, { paid: status && status === 'paid', limit, after });
  await sendPages(response, pages, toContract);
}
