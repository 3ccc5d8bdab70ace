import { errorBody, HttpError } from '@payloop/chassis/http-error.ts';
import { settleAll } from '@payloop/chassis/settle-all.ts';
import { z } from 'zod';
import type { Faults } from './faults.ts';
import type { ChargeResult, Ledger } from './ledger.ts';
import {
  maxPayments,
  parseKey,
  parseAntaeusPayment,
  parseKeyedPayment,
  parsePayment,
  readId,
  type Payment,
} from './payment-request.ts';

/** An HTTP response. */
export interface Reply {
  status: number;
  headers?: Record<string, string>;
  body: unknown;
}

/** The outcome of a payment in the response to an array. For a single payment, its status is the HTTP status. */
export const outcomeBody = () => {
  const repeated = z.literal(true).optional().meta({ description: 'The key has had this answer before.' });
  const { error } = errorBody().shape;
  const id = z.string().meta({ description: 'The id of the payment.' });
  return z
    .discriminatedUnion('status', [
      z.object({ status: z.literal(200), id, repeated }),
      z.object({ status: z.literal(402), id, error, repeated }),
      z.object({ status: z.literal([409, 422]), id, error }),
      // The id is absent if the payment has no readable one.
      z.object({ status: z.literal(400), id: id.optional(), error }),
    ])
    .meta({ id: 'Outcome' });
};
type Outcome = z.infer<ReturnType<typeof outcomeBody>>;

/** The response to a payment in the Antaeus form. */
export const antaeusResult = () => z.object({ result: z.boolean() }).meta({ id: 'AntaeusResult' });
type AntaeusResult = z.infer<ReturnType<typeof antaeusResult>>;

/** The response to a single payment that was charged. */
export const charged = () => z.object({ id: z.string() }).meta({ id: 'Charged' });

/** How long a client with a busy key should wait, in seconds. */
const retryAfter = 1;

/** The outcomes that are counted. Repeated: an earlier request with the key was charged or declined. */
export const chargeOutcomes = ['charged', 'declined', 'repeated', 'mismatch', 'busy', 'retired'] as const;
export type ChargeOutcome = (typeof chargeOutcomes)[number];

/** Charges incoming payments and responds with their outcomes. */
export class Cashier {
  readonly #ledger: Ledger;
  readonly #faults: Faults;
  readonly #count: (outcome: ChargeOutcome, times: number) => void;
  /** Keys of requests in flight. */
  readonly #busy = new Set<string>();

  /** @param count called once for each outcome in a request, with the number of its charges */
  constructor(ledger: Ledger, faults: Faults, count: (outcome: ChargeOutcome, times: number) => void) {
    this.#ledger = ledger;
    this.#faults = faults;
    this.#count = count;
  }

  /**
   * Takes the body of `POST /payments/pay`: one payment, or an array of them.
   * @param header the request's `Idempotency-Key`
   * @param epoch the request's `Ledger-Epoch`
   * @throws {HttpError} 400, 410, DatabaseUnavailable
   */
  pay(body: unknown, header?: string, epoch?: string): Promise<Reply> {
    return Array.isArray(body) ? this.#payArray(body, epoch) : this.#payOne(body, header, epoch);
  }

  /**
   * Takes the body of `POST /rest/v1/payments`, the Antaeus form. The response tells only whether it was charged.
   * @param header the request's `Idempotency-Key`
   * @throws {HttpError} 400, 410, DatabaseUnavailable
   */
  async payAntaeus(body: unknown, header?: string, epoch?: string): Promise<Reply> {
    const reply = await this.#reply({ ...parseAntaeusPayment(body), key: parseKey(header) }, epoch);
    const definite = reply.status === 200 || reply.status === 402;
    if (!definite) return reply;
    const result: AntaeusResult = { result: reply.status === 200 };
    return { ...reply, status: 200, body: result };
  }

  #payOne(body: unknown, header: string | undefined, epoch: string | undefined): Promise<Reply> {
    return this.#reply({ ...parsePayment(body), key: parseKey(header) }, epoch);
  }

  async #reply(payment: Payment, epoch: string | undefined): Promise<Reply> {
    const result = await this.#charge(payment, epoch);
    this.#count(countedAs(result), 1);
    const outcome = toOutcome(payment, result);
    const { status } = outcome;
    const isRepeated = 'repeated' in outcome && outcome.repeated;
    return {
      status,
      headers: {
        ...(isRepeated && { 'Idempotency-Hit': 'true' }),
        ...(status === 409 && { 'Retry-After': `${retryAfter}` }),
      },
      body: outcome.status === 200 ? { id: outcome.id } : { error: outcome.error },
    };
  }

  async #payArray(bodies: unknown[], epoch: string | undefined): Promise<Reply> {
    if (bodies.length > maxPayments)
      throw new HttpError(400, `at most ${maxPayments} payments in one request`);
    const tally = new Map<ChargeOutcome, number>();
    try {
      // Settles all of them, so that all are counted.
      const outcomes = await settleAll(bodies.map((body) => this.#payElement(body, epoch, tally)));
      return { status: 200, body: outcomes };
    } finally {
      tally.forEach((times, outcome) => this.#count(outcome, times));
    }
  }

  // An invalid payment does not stop the others from being charged.
  async #payElement(
    body: unknown,
    epoch: string | undefined,
    tally: Map<ChargeOutcome, number>,
  ): Promise<Outcome> {
    let payment: Payment;
    try {
      payment = parseKeyedPayment(body);
    } catch (error) {
      if (!(error instanceof HttpError)) throw error;
      const id = readId(body);
      return { status: 400, ...(id !== undefined && { id }), error: error.message };
    }
    const result = await this.#charge(payment, epoch);
    const outcome = countedAs(result);
    tally.set(outcome, (tally.get(outcome) ?? 0) + 1);
    return toOutcome(payment, result);
  }

  async #charge({ id, amount, currency, key }: Payment, epoch: string | undefined): Promise<ChargeResult> {
    if (key !== undefined && this.#busy.has(key)) return { outcome: 'busy' };
    if (key !== undefined) this.#busy.add(key);
    try {
      const outcome = this.#faults.declines(id) ? 'declined' : 'charged';
      return await this.#ledger.charge({ key, paymentId: id, amount, currency, outcome, epoch });
    } finally {
      if (key !== undefined) this.#busy.delete(key);
    }
  }
}

function countedAs(result: ChargeResult): ChargeOutcome {
  return 'repeated' in result && result.repeated ? 'repeated' : result.outcome;
}

function toOutcome({ id }: Payment, result: ChargeResult): Outcome {
  switch (result.outcome) {
    case 'charged':
      return { status: 200, id, ...(result.repeated && { repeated: true }) };
    case 'declined':
      return { status: 402, id, error: 'payment declined', ...(result.repeated && { repeated: true }) };
    case 'mismatch':
      return { status: 422, id, error: 'this idempotency key was used for another payment' };
    case 'retired':
      throw new HttpError(410, 'the data of this payment has been reset');
    case 'busy':
      return { status: 409, id, error: 'the first request with this idempotency key is still in flight' };
  }
}
