import { HttpError } from '@payloop/kit/http-error.ts';
import type { Faults } from './faults.ts';
import type { Answer, Ledger } from './ledger.ts';
import {
  mostPayments,
  parseKey,
  parseAntaeusPayment,
  parseKeyedPayment,
  parsePayment,
  type Payment,
} from './payment.ts';

/** An HTTP answer. */
export interface Reply {
  status: number;
  headers?: Record<string, string>;
  body: unknown;
}

/** How long a client whose key is busy should wait, in seconds. */
const retryAfter = 1;

/** What a charge can come to; repeated: its key had its answer before. */
export const chargeOutcomes = ['charged', 'declined', 'repeated', 'mismatch', 'busy'] as const;
export type ChargeOutcome = (typeof chargeOutcomes)[number];

/** Takes payments as they come in, and says how they ended. */
export class Cashier {
  readonly #ledger: Ledger;
  readonly #faults: Faults;
  readonly #count: (outcome: ChargeOutcome) => void;
  /** Keys of requests that have no answer yet. */
  readonly #busy = new Set<string>();

  /** @param count told what each charge came to */
  constructor(ledger: Ledger, faults: Faults, count: (outcome: ChargeOutcome) => void = () => {}) {
    this.#ledger = ledger;
    this.#faults = faults;
    this.#count = count;
  }

  /**
   * Takes the body of `POST /payments/pay`: one payment, or an array of them.
   * @param header the request's `Idempotency-Key`
   * @throws {HttpError} 400, DatabaseUnavailable
   */
  pay(body: unknown, header?: string): Promise<Reply> {
    return Array.isArray(body) ? this.#payArray(body) : this.#payOne(body, header);
  }

  /**
   * Takes the body of `POST /rest/v1/payments`, the Antaeus form, which tells only whether it was charged.
   * @param header the request's `Idempotency-Key`
   * @throws {HttpError} 400, DatabaseUnavailable
   */
  async payAntaeus(body: unknown, header?: string): Promise<Reply> {
    const reply = await this.#reply({ ...parseAntaeusPayment(body), key: parseKey(header) });
    const definite = reply.status === 200 || reply.status === 402;
    return definite ? { ...reply, status: 200, body: { result: reply.status === 200 } } : reply;
  }

  #payOne(body: unknown, header: string | undefined): Promise<Reply> {
    return this.#reply({ ...parsePayment(body), key: parseKey(header) });
  }

  async #reply(payment: Payment): Promise<Reply> {
    const answer = await this.#charge(payment);
    const { status, repeated, ...rest } = describe(payment, answer);
    return {
      status,
      headers: {
        ...(repeated && { 'Idempotency-Hit': 'true' }),
        ...(status === 409 && { 'Retry-After': `${retryAfter}` }),
      },
      body: rest,
    };
  }

  async #payArray(bodies: unknown[]): Promise<Reply> {
    if (bodies.length > mostPayments)
      throw new HttpError(400, `at most ${mostPayments} payments in one request`);
    const outcomes = await Promise.all(bodies.map((body) => this.#payElement(body)));
    return { status: 200, body: outcomes };
  }

  // A payment that is wrong does not keep the others from being charged.
  async #payElement(body: unknown) {
    let payment: Payment;
    try {
      payment = parseKeyedPayment(body);
    } catch (error) {
      if (error instanceof HttpError) return { status: error.status, error: error.message };
      throw error;
    }
    return describe(payment, await this.#charge(payment));
  }

  async #charge(payment: Payment): Promise<Answer> {
    const answer = await this.#chargeOnce(payment);
    this.#count('repeated' in answer && answer.repeated ? 'repeated' : answer.outcome);
    return answer;
  }

  async #chargeOnce({ id, amount, currency, key }: Payment): Promise<Answer> {
    if (key !== undefined && this.#busy.has(key)) return { outcome: 'busy' };
    if (key !== undefined) this.#busy.add(key);
    try {
      const outcome = this.#faults.declines(id) ? 'declined' : 'charged';
      return await this.#ledger.charge({ key, paymentId: id, amount, currency, outcome });
    } finally {
      if (key !== undefined) this.#busy.delete(key);
    }
  }
}

function describe({ id }: Payment, answer: Answer) {
  switch (answer.outcome) {
    case 'charged':
      return { status: 200, id, ...(answer.repeated && { repeated: true }) };
    case 'declined':
      return { status: 402, error: 'payment declined', ...(answer.repeated && { repeated: true }) };
    case 'mismatch':
      return { status: 422, error: 'this idempotency key was used for another payment' };
    case 'busy':
      return { status: 409, error: 'the first request with this idempotency key is still at work' };
  }
}
