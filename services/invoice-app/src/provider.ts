import { Agent as HttpAgent } from 'node:http';
import { Agent as HttpsAgent } from 'node:https';
import { HttpError } from '@payloop/kit/http-error.ts';
import { reduceError, type Log } from '@payloop/kit/log.ts';
import { toMajorUnits } from '@payloop/kit/money.ts';
import { step as direct, type Step } from '@payloop/kit/step.ts';
import { bearer } from '@payloop/kit/token.ts';
import { version } from '@payloop/kit/run.ts';
import { annotate, traceHeaders } from '@payloop/kit/tracing.ts';
import axios, { type AxiosAdapter, type AxiosInstance } from 'axios';
import { z } from 'zod';
import type { Attempt } from './batches.ts';
import { createUndiciAdapter } from './undici-adapter.ts';

/** What is known of an attempt after it was asked for. Unknown: it may or may not have been charged. */
export const everyOutcome = ['charged', 'declined', 'unknown'] as const;
export type Outcome = (typeof everyOutcome)[number];

/** How an attempt ended, as far as one answer tells. */
export interface Ending {
  outcome: Outcome;
  /** Of a decline, in the provider's words; undefined where it gave none. */
  reason?: string | undefined;
}
const charged: Ending = { outcome: 'charged' };
const unknown: Ending = { outcome: 'unknown' };
/** Of a reason no more is kept, in characters, and none that Postgres cannot store. */
const longestReason = 200;

/** `GET /version` of invoice-app: from outside, the provider is seen only so, by what it says itself. */
export const appVersion = () => {
  const providerVersion = z.looseObject(version().shape).partial().nullable();
  return version().extend({ provider: providerVersion }).meta({ id: 'AppVersion' });
};
export type AppVersion = z.infer<ReturnType<typeof appVersion>>;

/** What every request for payments carries. */
type PaymentHeaders = Record<string, string> & { 'X-Request-Id': string };

export interface ProviderOptions {
  /** Where payments are posted to. */
  url: string;
  /** Holds the token that says who asks; none is sent where it is undefined. */
  tokenFile?: string | undefined;
  log: Log;
  /** False where the provider is known to take one payment a request only. */
  arrays?: boolean;
  step?: Step;
  /** What axios sends requests with. */
  adapter?: AxiosAdapter;
}

/** How long the provider may take for an answer, in milliseconds. */
const timeout = 2_000;
/** The same for its version, which only the payment test waits for. */
const versionTimeout = 1_000;
/** How the original refuses what is not one payment. */
const notAPayment = 'failed to process payment request parameters';
/** More than any answer of the provider holds, in bytes. */
const maxContentLength = 1_000_000;
/** Connections to the provider. */
const connections = 64;
/**
 * Requests at a time for one batch, where each is for one payment: with the batches that are under way together
 * (`workers` in pay.ts) no more than there are connections, as one that waits for a connection runs out of time.
 */
const concurrency = 10;

/** The payment provider, reached over HTTP. */
export class Provider {
  readonly #url: string;
  readonly #tokenFile: string | undefined;
  readonly #log: Log;
  readonly #step: Step;
  readonly #http: AxiosInstance;
  #arrays: boolean;

  constructor({ url, tokenFile, log, arrays = true, step = direct, adapter }: ProviderOptions) {
    this.#url = url;
    this.#tokenFile = tokenFile;
    this.#log = log;
    this.#step = step;
    this.#arrays = arrays;
    this.#http = axios.create({
      adapter: adapter ?? createUndiciAdapter({ connections }),
      timeout,
      maxContentLength,
      maxRedirects: 0,
      // Proxy variables are meant for traffic that leaves the cluster.
      proxy: false,
      validateStatus: () => true,
    });
    // Of its own an adapter may only count the time in which nothing arrives: an answer that trickles has no end.
    this.#http.interceptors.request.use((config) => {
      const signals = [
        AbortSignal.timeout(config.timeout ?? timeout),
        config.signal as AbortSignal | undefined,
      ];
      config.signal = AbortSignal.any(signals.filter((signal) => signal !== undefined));
      return config;
    });
  }

  /**
   * Asks for each of these payments once, under its own key; never throws.
   * @param attempts at most 1,000, what the provider takes in one request
   * @returns how each ended, in their order
   */
  async pay(attempts: Attempt[], requestId: string): Promise<Ending[]> {
    let headers: PaymentHeaders;
    try {
      headers = { 'X-Request-Id': requestId, ...bearer(this.#tokenFile) };
    } catch (error) {
      this.#log.error({ requestId }, `the provider was not asked: ${reduceError(error).message}`);
      return attempts.map(() => unknown);
    }
    if (this.#arrays) {
      const endings = await this.#payArray(attempts, headers);
      if (endings !== undefined) return endings;
      this.#arrays = false;
      this.#log.info('the provider takes one payment a request');
    }
    return this.#payEach(attempts, headers);
  }

  /** Undefined where the provider does not know arrays, and so has charged nothing. */
  async #payArray(attempts: Attempt[], headers: PaymentHeaders): Promise<Ending[] | undefined> {
    const payments = attempts.map((attempt) => ({ ...toPayment(attempt), idempotencyKey: attempt.key }));
    const answer = await this.#post(payments, headers);
    if (answer?.status === 400 && answer.data?.error === notAPayment) return undefined;
    const answers = answer?.status === 200 && Array.isArray(answer.data) ? answer.data : [];
    return attempts.map((attempt, index) => toEnding(attempt, answers[index]?.status, answers[index]));
  }

  async #payEach(attempts: Attempt[], headers: PaymentHeaders): Promise<Ending[]> {
    const endings = attempts.map(() => unknown);
    const queue = attempts.entries();
    // After as many unusable answers in a row as there are requests at a time, the others are not asked for.
    let unknownInARow = 0;
    const worker = async () => {
      for (const [index, attempt] of queue) {
        const answer = await this.#post(toPayment(attempt), { ...headers, 'Idempotency-Key': attempt.key });
        const ending = toEnding(attempt, answer?.status, answer?.data);
        endings[index] = ending;
        unknownInARow = ending.outcome === 'unknown' ? unknownInARow + 1 : 0;
        if (unknownInARow >= concurrency) return;
      }
    };
    await Promise.all(Array.from({ length: concurrency }, worker));
    return endings;
  }

  /** Undefined without an answer. */
  async #post(body: unknown, headers: PaymentHeaders) {
    const requestId = headers['X-Request-Id'];
    try {
      const answer = await this.#step('post', () => {
        annotate({ 'payloop.payments': Array.isArray(body) ? body.length : 1 });
        return this.#http.post(this.#url, body, { headers: { ...headers, ...traceHeaders() } });
      });
      const { status } = answer;
      if (status !== 200 && status !== 402) {
        this.#log.warn({ requestId, status }, reasonUnusable(status));
      }
      return answer;
    } catch (error) {
      const { message, code } = reduceError(error);
      this.#log.warn({ requestId, code }, `the provider did not answer: ${message}`);
      return undefined;
    }
  }

  /**
   * The provider's own `/version`, over a connection made for it, as any replica may answer; null without one.
   * @param signal ends it: nobody waits for it any more
   */
  async version(signal?: AbortSignal): Promise<AppVersion['provider']> {
    try {
      const { status, data } = await this.#http.get(this.#path('/version'), {
        adapter: 'http',
        timeout: versionTimeout,
        ...(signal && { signal }),
        httpAgent: new HttpAgent(),
        httpsAgent: new HttpsAgent(),
      });
      return status === 200 && typeof data === 'object' ? data : null;
    } catch {
      return null;
    }
  }

  /** Makes the provider forget every payment. @throws {HttpError} 502 when it did not */
  async reset(): Promise<void> {
    let status: number | string | undefined;
    try {
      const headers = bearer(this.#tokenFile);
      ({ status } = await this.#http.post(this.#path('/reset'), undefined, { headers }));
    } catch (error) {
      status = reduceError(error).message;
    }
    if (status !== 200) throw new HttpError(502, `payment-provider was not reset: ${status}`);
  }

  #path(path: string): string {
    return new URL(path, this.#url).href;
  }
}

/**
 * A refused token is an unknown outcome as well: this request charged nothing, an earlier one with its key may have.
 * Asked again, it has the token that is in the file by then.
 */
function reasonUnusable(status: number): string {
  const isRefused = status === 401 || status === 403;
  return isRefused ? 'the provider refused the token' : 'the provider gave no usable answer';
}

function toPayment({ id, amount, currency }: Attempt) {
  return { id: `I${id}`, value: toMajorUnits(amount, currency), currency };
}

/** Definite is only what the contract calls so: 200 with the payment's own id, and 402. */
function toEnding(
  { id }: Attempt,
  status: unknown,
  body: { id?: unknown; error?: unknown } | undefined,
): Ending {
  if (status === 200 && body?.id === `I${id}`) return charged;
  if (status !== 402) return unknown;
  const reason =
    typeof body?.error === 'string' ? body.error.replaceAll('\0', '').slice(0, longestReason) : undefined;
  return { outcome: 'declined', reason };
}
