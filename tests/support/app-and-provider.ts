import { Client } from 'pg';
import * as invoiceApp from '../../services/invoice-app/src/service.ts';
import type { Self } from '../../libraries/chassis/src/self.ts';
import * as paymentProvider from '../../services/payment-provider/src/service.ts';
import { startService, type RunningService } from './start-service.ts';

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
