import { randomInt } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { ConfigError, integer, number, readConfig } from '@payloop/chassis/config.ts';
import { Database } from '@payloop/chassis/database.ts';
import { createLog } from '@payloop/chassis/log.ts';
import { Metrics } from '@payloop/chassis/metrics.ts';
import { describeAll } from '@payloop/chassis/openapi.ts';
import type { Self } from '@payloop/chassis/self.ts';
import { route, startServer, type Running } from '@payloop/chassis/server.ts';
import { step as direct } from '@payloop/chassis/step.ts';
import express, { type Handler, type Request, type Response } from 'express';
import {
  describeKeys,
  describePay,
  describePayAntaeus,
  describeReset,
  describeToken,
} from './description.ts';
import { authVariables, readTokenRules, requireToken } from './auth.ts';
import { Cashier, chargeOutcomes, type Reply } from './cashier.ts';
import { faultRates, Faults, lateness } from './faults.ts';
import { Ledger } from './ledger.ts';
import { parseBody, parseEpoch } from './payment-request.ts';
import { deletePayments, lockPayments, migrations, retireEpoch } from './charges.ts';

const service = 'payment-provider';

const variables = {
  PORT: integer(0, 65_535).default(8082),
  FAILURE_RATE: number('a number from 0 to 1', (rate) => rate >= 0 && rate <= 1).default(0),
  FAULTS: faultRates.default([]),
  FAULT_SEED: integer(0, 2 ** 32 - 1).optional(),
  ...authVariables,
};

/**
 * Starts the service that charges payments.
 * @throws {ConfigError} when a variable or the port cannot be used
 */
export async function start(self: Self): Promise<Running> {
  const { env, step = direct } = self;
  const config = readConfig(variables, env);
  if (config.inProd !== undefined && config.FAULTS.length > 0) {
    throw new ConfigError(`FAULTS must not be set ${config.inProd}`);
  }
  const rules = readTokenRules(config, config.inProd);
  const log = createLog(service, config.LOG_LEVEL);
  if (rules === undefined) log.warn('AUTH is off: every client that reaches this port can charge payments');
  const database = new Database({ service, url: config.databaseUrl, migrations, log });
  const faults = new Faults(config.FAULTS, config.FAILURE_RATE, config.FAULT_SEED ?? randomInt(2 ** 32));
  const metrics = new Metrics(database);
  const count = metrics.createCounter('charges_total', 'Charges requested.', 'outcome', chargeOutcomes);
  const cashier = new Cashier(new Ledger(database, step), faults, count);
  return startServer({ service, self, config, database, metrics, log }, (app) => {
    // Every route added from here on requires a token.
    if (rules !== undefined) {
      app.use(requireToken(rules, log));
      describeAll(app, describeToken);
    }
    describeAll(app, describeKeys);
    const take = (pay: Pay): Handler[] => [
      (_request, response, next) => {
        // The original ignores keys and does not send this header. Only clients that see it may retry unknown outcomes.
        response.set('Accept-Idempotency-Key', 'true');
        next();
      },
      // Reads any type, as clients send none or a wrong one.
      express.raw({ type: () => true, limit: '512kb' }),
      (request, response) =>
        answer(request, response, faults, (...given) => step('charge', () => pay(...given))),
    ];
    const pay = take((...given) => cashier.pay(...given));
    route(app, '/payments/pay', { post: pay }, describePay);
    const payAntaeus = take((...given) => cashier.payAntaeus(...given));
    route(app, '/rest/v1/payments', { post: payAntaeus }, describePayAntaeus);
    if (config.ALLOW_RESET) {
      const reset: Handler = async (request, response) => {
        const epoch = parseEpoch(request.get('Ledger-Epoch'));
        await database.transaction(async (query) => {
          await lockPayments(query);
          // A repeated reset, however late, must not delete payments charged since the first.
          const isNew = epoch === undefined || (await retireEpoch(query, epoch));
          if (isNew) await deletePayments(query);
        });
        response.json({});
      };
      route(app, '/reset', { post: reset }, describeReset);
    }
  });
}

type Pay = (body: unknown, key: string | undefined, epoch: string | undefined) => Promise<Reply>;

/** Answers with the reply of `pay`, and injects the drawn fault. */
async function answer(request: Request, response: Response, faults: Faults, pay: Pay): Promise<void> {
  const body = parseBody(request.body);
  const epoch = parseEpoch(request.get('Ledger-Epoch'));
  const payOnce = () => pay(body, request.get('Idempotency-Key'), epoch);
  const fault = faults.draw(firstId(body));
  if (fault === 'fail') {
    send(response, { status: 500, body: { error: 'failed on purpose' } });
    return;
  }
  const [reply] = await Promise.all(fault === 'duplicate' ? [payOnce(), payOnce()] : [payOnce()]);
  if (fault === 'reset') request.socket.resetAndDestroy();
  else if (fault === 'late') await sleep(lateness).then(() => send(response, reply));
  else if (fault !== 'silent') send(response, reply);
}

function firstId(body: unknown): string {
  const first = (Array.isArray(body) ? body[0] : body) as { id?: unknown } | null;
  return typeof first?.id === 'string' ? first.id : '';
}

function send(response: Response, { status, headers = {}, body }: Reply): void {
  response.status(status).set(headers).json(body);
}
