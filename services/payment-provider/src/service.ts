import { integer, number, readConfig } from '@payloop/kit/config.ts';
import { Database } from '@payloop/kit/database.ts';
import { HttpError } from '@payloop/kit/http-error.ts';
import { createLog } from '@payloop/kit/log.ts';
import type { Self } from '@payloop/kit/run.ts';
import { route, startServer, type Running } from '@payloop/kit/server.ts';
import express from 'express';
import { parsePayment } from './payment.ts';
import { deletePayments, migrations, recordPayment } from './payments.ts';

const service = 'payment-provider';

const variables = {
  PORT: integer(0, 65_535).default(8082),
  FAILURE_RATE: number('a number from 0 to 1', (rate) => rate >= 0 && rate <= 1).default(0),
};

/**
 * Starts the service that charges payments.
 * @throws {ConfigError} when a variable or the port cannot be used
 */
export async function start({ env, source, instance }: Self): Promise<Running> {
  const config = readConfig(variables, env);
  const log = createLog(service, config.LOG_LEVEL);
  const database = new Database({ service, url: config.databaseUrl, migrations, log });
  const options = {
    host: config.HOST,
    port: config.PORT,
    shutdownDelay: config.SHUTDOWN_DELAY_MS,
    database,
    log,
  };
  return startServer(options, (app) => {
    route(app, '/version', {
      get: (_request, response) => void response.json({ service, source, instance }),
    });
    route(app, '/payments/pay', {
      // Read whatever its type says: clients send none, or a wrong one.
      post: [
        express.raw({ type: () => true, limit: '512kb' }),
        async (request, response) => {
          const payment = parsePayment(request.body);
          const outcome = Math.random() < config.FAILURE_RATE ? 'declined' : 'charged';
          await recordPayment(database, payment, outcome);
          if (outcome === 'declined') throw new HttpError(402, 'payment declined');
          response.json({ id: payment.id });
        },
      ],
    });
    if (config.ALLOW_RESET) {
      route(app, '/reset', {
        post: async (_request, response) => {
          await deletePayments(database);
          response.json({});
        },
      });
    }
  });
}
