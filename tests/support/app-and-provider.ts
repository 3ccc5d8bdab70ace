import type { IncomingMessage } from 'node:http';
import { json } from 'node:stream/consumers';
import { Client } from 'pg';
import * as invoiceApp from '../../services/invoice-app/src/service.ts';
import type { Self } from '../../libraries/chassis/src/self.ts';
import * as paymentProvider from '../../services/payment-provider/src/service.ts';
import { ask, listen, post, startService, type RunningService } from './start-service.ts';

/** Starts payment-provider with reset allowed. `startService` documents `postgresUrl`. */
export const startProvider = (
  env: Record<string, string> = {},
  self: Partial<Self> = {},
  postgresUrl?: string,
) => startService(paymentProvider, { ALLOW_RESET: 'true', ...env }, self, postgresUrl);

/** Starts invoice-app with reset allowed and the provider at `url`. */
export const startApp = (
  { url }: { url: string },
  env: Record<string, string> = {},
  self: Partial<Self> = {},
  postgresUrl?: string,
): Promise<RunningService> =>
  startService(
    invoiceApp,
    { ALLOW_RESET: 'true', PAYMENT_PROVIDER_URL: `${url}/payments/pay`, ...env },
    self,
    postgresUrl,
  );

/** Opens a session in the database of a service, bypassing its API. */
export async function connect({ databaseUrl }: { databaseUrl: string }) {
  const client = new Client({ connectionString: databaseUrl });
  await client.connect();
  return Object.assign(client, { [Symbol.asyncDispose]: () => client.end() });
}

export const pay = ({ url }: { url: string }) => post(`${url}/invoices/pay`);

export const countUnpaid = async ({ url }: { url: string }) =>
  ((await ask(`${url}/invoices?status=unpaid`)).body as unknown[]).length;

/** SQL that recreates the batches with two invoices each. A claim takes one row of this table. */
export const batchesOfTwo = `
  TRUNCATE batches;
  INSERT INTO batches (first_id, last_id) SELECT n, n + 1 FROM generate_series(1, (SELECT max(id) FROM invoices), 2) AS n`;

export type Answer = [status: number, reply: unknown];

/** Starts a provider that answers with `answer` and records the bodies of its requests. */
export async function startScriptedProvider(
  answer: (body: any, request: IncomingMessage) => Answer | Promise<Answer>,
) {
  const bodies: unknown[] = [];
  const server = await listen(async (request, response) => {
    const body = await json(request);
    bodies.push(body);
    const [status, reply] = await answer(body, request);
    response.writeHead(status, { 'Content-Type': 'application/json' }).end(JSON.stringify(reply));
  });
  return { ...server, bodies };
}
