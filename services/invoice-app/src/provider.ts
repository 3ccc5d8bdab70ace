import { Agent as HttpAgent } from 'node:http';
import { Agent as HttpsAgent } from 'node:https';
import { reduceError, type Log } from '@payloop/chassis/log.ts';
import { toMajorUnits } from '@payloop/chassis/money.ts';
import { settleAll } from '@payloop/chassis/settle-all.ts';
import { step as direct, type Step } from '@payloop/chassis/step.ts';
import { bearer } from '@payloop/chassis/token.ts';
import { version } from '@payloop/chassis/self.ts';
import { annotate, traceHeaders } from '@payloop/chassis/tracing.ts';
import axios, { type AxiosAdapter, type AxiosInstance } from 'axios';
import { z } from 'zod';
import type { Attempt } from './invoices.ts';
import { createUndiciAdapter } from './undici-adapter.ts';

/**
 * What is known of an attempt after it was asked for. Refused: this request charged nothing, and the same one never
 * will. Unknown: it may or may not have been charged.
 */
export const everyOutcome = ['charged', 'declined', 'refused', 'unknown'] as const;
export type Outcome = (typeof everyOutcome)[number];

/** How an attempt ended, as far as one answer tells. */
export interface Ending {
  /** Unasked: no request was sent for it. */
  outcome: Outcome | 'unasked';
  /** Of a decline or a refusal, in the provider's words. */
  reason?: string;
  /** Whether the provider serves nobody at the moment: the answer says nothing of this payment. */
  down?: boolean;
  /** Whether it must not be asked for again in this run; an unknown outcome, never by itself. */
  isFinal?: boolean;
}
const charged: Ending = { outcome: 'charged' };
const unknown: Ending = { outcome: 'unknown' };
const unknownAsDown: Ending = { outcome: 'unknown', down: true };
const unasked: Ending = { outcome: 'unasked', down: true };
const unaskedForNow: Ending = { outcome: 'unasked', down: true, isFinal: true };
/** Marked or ended by another process since it was read. */
const somebodyElses: Ending = { outcome: 'unasked', isFinal: true };
/** Of a request that no key protects. */
const unsettled: Ending = { outcome: 'unknown', down: true, isFinal: true };

/** What a run of pay gives to who asks for its payments. */
export interface Asking {
  requestId: string;
  /** Names the data that the payments are part of. */
  epoch: string;
  /** Whether the batch is still this run's: without that nothing may be asked for. */
  isHeld(): boolean;
  /** Marks attempts before requests that no key protects. @returns those that may be asked for */
  mark(attempts: Attempt[]): Promise<Attempt[]>;
  /** Takes marks back where nothing was charged. */
  unmark(attempts: Attempt[]): Promise<void>;
  /** Stores what is definite. */
  store(attempts: Attempt[], endings: Ending[]): Promise<void>;
}

/** An answer of the provider, as far as there is one. */
interface Answer {
  status?: number;
  data?: unknown;
  /** Whether this request has charged nothing for certain: it was never sent, or never looked at. */
  isNeverCharged: boolean;
}
/** Errors of connections that were never made. */
const unsent = new Set(['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH']);

/** The header with which a provider says, with `true`, that it honours keys. The original sends none, and ignores them. */
const honoursKeys = 'Accept-Idempotency-Key';
/** The header that names the data that a request is part of: once they were reset, the provider charges nothing for it. */
const ledgerEpoch = 'Ledger-Epoch';

/** What came of a request to reset the provider. Unknown: it may have been reset, or may be yet. */
export type ResetAnswer =
  | { outcome: 'reset' }
  | { outcome: 'refused'; reason: string; /** Whether it has no reset at all. */ isAbsent: boolean }
  | { outcome: 'unknown'; reason: string };

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
  /** Whether it is known to honour keys; otherwise its answers say so. */
  keys?: boolean;
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
 * (`workers` in payments.ts) no more than there are connections, as one that waits for a connection runs out of time.
 */
const concurrency = 10;
/** How often answers are stored while a batch is paid one by one, in milliseconds: a slow provider shows progress. */
const storeInterval = 1_000;

/** The payment provider, reached over HTTP. */
export class Provider {
  readonly #url: string;
  readonly #tokenFile: string | undefined;
  readonly #log: Log;
  readonly #step: Step;
  readonly #http: AxiosInstance;
  #arrays: boolean;
  /** What the last answer said. Arrays need no word on it: a provider that takes them takes the keys in them. */
  #keys: boolean;

  constructor({ url, tokenFile, log, arrays = true, keys = false, step = direct, adapter }: ProviderOptions) {
    this.#url = url;
    this.#tokenFile = tokenFile;
    this.#log = log;
    this.#step = step;
    this.#arrays = arrays;
    this.#keys = keys;
    this.#http = axios.create({
      adapter: adapter ?? createUndiciAdapter({ connections, maxResponseSize: maxContentLength }),
      maxContentLength,
      maxRedirects: 0,
      // Proxy variables are meant for traffic that leaves the cluster.
      proxy: false,
      validateStatus: () => true,
    });
  }

  /**
   * Asks for each of these payments once, under its own key, and has what comes of them stored.
   * @param attempts at most 1,000, what the provider takes in one request
   * @returns how each ended, in their order
   * @throws only what `asking` throws
   */
  async pay(attempts: Attempt[], asking: Asking): Promise<Ending[]> {
    const { requestId, epoch } = asking;
    let headers: PaymentHeaders;
    try {
      headers = { 'X-Request-Id': requestId, [ledgerEpoch]: epoch, ...bearer(this.#tokenFile) };
    } catch (error) {
      this.#log.error({ requestId }, `the provider was not asked: ${reduceError(error).message}`);
      return attempts.map(() => unasked);
    }
    if (this.#arrays) {
      const endings = await this.#payArray(attempts, headers);
      if (endings !== undefined) {
        await asking.store(attempts, endings);
        return endings;
      }
    }
    return this.#payEach(attempts, headers, asking);
  }

  /** Undefined where the provider refused the array as a whole, and so has charged nothing. */
  async #payArray(attempts: Attempt[], headers: PaymentHeaders): Promise<Ending[] | undefined> {
    const payments = attempts.map((attempt) => ({ ...toPayment(attempt), idempotencyKey: attempt.key }));
    const { status, data } = await this.#post(payments, headers);
    const whole = toEnding(undefined, status, data);
    if (whole.outcome === 'refused') {
      // One by one, the payment that is to blame fails alone. The original's words mean that no array is taken.
      if (whole.reason === notAPayment) {
        this.#arrays = false;
        this.#log.info('the provider takes one payment a request');
      }
      return undefined;
    }
    if (status !== 200) return attempts.map(() => (whole.down ? unknownAsDown : unknown));
    return matchAnswers(attempts, data);
  }

  /** One request for each payment. */
  async #payEach(attempts: Attempt[], headers: PaymentHeaders, asking: Asking): Promise<Ending[]> {
    const endings = new Map<Attempt, Ending>();
    const queue = [...attempts];
    while (queue.length > 0 && asking.isHeld()) {
      const ended = this.#keys
        ? await this.#payProtected(queue, headers, asking)
        : await this.#payMarked(queue.splice(0, concurrency), headers, asking);
      ended.forEach((ending, attempt) => endings.set(attempt, ending));
      if ([...ended.values()].every(({ down }) => down)) break;
    }
    // Without keys, nothing is asked for again in the same run: each unknown outcome costs somebody's time.
    const rest = this.#keys ? unasked : unaskedForNow;
    return attempts.map((attempt) => endings.get(attempt) ?? rest);
  }

  /**
   * Pays at a provider that honours keys, until the queue is empty, the provider stops honouring keys, it gives as many
   * signs of being down in a row as there are requests at a time, or the lease is lost.
   */
  async #payProtected(
    queue: Attempt[],
    headers: PaymentHeaders,
    asking: Asking,
  ): Promise<Map<Attempt, Ending>> {
    const endings = new Map<Attempt, Ending>();
    let unstored: Attempt[] = [];
    let storedAt = performance.now();
    const store = async () => {
      const attempts = unstored.toSorted((a, b) => a.id - b.id);
      unstored = [];
      storedAt = performance.now();
      await asking.store(
        attempts,
        attempts.map((attempt) => endings.get(attempt)!),
      );
    };
    let downInARow = 0;
    const payNext = async () => {
      while (queue.length > 0 && this.#keys && downInARow < concurrency && asking.isHeld()) {
        const attempt = queue.shift()!;
        const ending = await this.#payOne(attempt, headers);
        endings.set(attempt, ending);
        unstored.push(attempt);
        downInARow = ending.down ? downInARow + 1 : 0;
        if (performance.now() - storedAt >= storeInterval) await store();
      }
    };
    const worker = () =>
      payNext().catch((error: unknown) => {
        // The others finish the request that they are at.
        queue.length = 0;
        throw error;
      });
    await settleAll(Array.from({ length: concurrency }, worker));
    if (unstored.length > 0) await store();
    return endings;
  }

  /**
   * At a provider that ignores keys: a second request would charge again. So each payment is marked before its request,
   * and an outcome that stays unknown is final.
   */
  async #payMarked(group: Attempt[], headers: PaymentHeaders, asking: Asking): Promise<Map<Attempt, Ending>> {
    const marked = await asking.mark(group);
    const answers = await Promise.all(marked.map((attempt) => this.#payOne(attempt, headers)));
    // What charged nothing for certain may be asked for again.
    const free = marked.filter((_attempt, index) => answers[index]?.outcome === 'unasked');
    if (free.length > 0) await asking.unmark(free);
    await asking.store(marked, answers);
    const endings = new Map(group.map((attempt) => [attempt, somebodyElses]));
    marked.forEach((attempt, index) => endings.set(attempt, answers[index]!));
    return endings;
  }

  async #payOne(attempt: Attempt, headers: PaymentHeaders): Promise<Ending> {
    const isProtected = this.#keys;
    const answer = await this.#post(toPayment(attempt), { ...headers, 'Idempotency-Key': attempt.key });
    const ending = toEnding(attempt, answer.status, answer.data);
    if (isProtected || ending.outcome !== 'unknown') return ending;
    return answer.isNeverCharged ? unaskedForNow : unsettled;
  }

  async #post(body: unknown, headers: PaymentHeaders): Promise<Answer> {
    const requestId = headers['X-Request-Id'];
    try {
      const answer = await this.#step('post', () => {
        annotate({ 'payloop.payments': Array.isArray(body) ? body.length : 1 });
        const all = { ...headers, ...traceHeaders() };
        return within(timeout, (signal) => this.#http.post(this.#url, body, { headers: all, signal }));
      });
      const { status, data } = answer;
      if ([200, 400, 402, 422].includes(status)) {
        this.#keys = answer.headers[honoursKeys.toLowerCase()] === 'true';
      } else {
        this.#log.warn({ requestId, status }, reasonUnusable(status));
      }
      return { status, data, isNeverCharged: [401, 403, 429].includes(status) };
    } catch (error) {
      const { message, code } = reduceError(error);
      this.#log.warn({ requestId, code }, `the provider did not answer: ${message}`);
      return { isNeverCharged: unsent.has(`${code}`) };
    }
  }

  /**
   * The provider's own `/version`, over a connection made for it, as any replica may answer; null without one.
   * @param signal ends it: nobody waits for it any more
   */
  async version(signal: AbortSignal): Promise<AppVersion['provider']> {
    try {
      const { status, data } = await this.#http.get(this.#path('/version'), {
        adapter: 'http',
        signal: AbortSignal.any([AbortSignal.timeout(versionTimeout), signal]),
        httpAgent: new HttpAgent(),
        httpsAgent: new HttpsAgent(),
      });
      return status === 200 && typeof data === 'object' ? data : null;
    } catch {
      return null;
    }
  }

  /**
   * Makes the provider forget every payment of an epoch, and refuse those that are still to come; never throws. Asked
   * again for the same epoch it changes nothing.
   */
  async reset(epoch: string): Promise<ResetAnswer> {
    let headers: Record<string, string>;
    try {
      headers = { [ledgerEpoch]: epoch, ...bearer(this.#tokenFile) };
    } catch (error) {
      return { outcome: 'refused', reason: `${reduceError(error).message}`, isAbsent: false };
    }
    try {
      const { status } = await this.#step('post reset', () =>
        within(timeout, (signal) => this.#http.post(this.#path('/reset'), undefined, { headers, signal })),
      );
      if (status === 200) return { outcome: 'reset' };
      const isRefused = status >= 400 && status < 500 && status !== 408;
      const isAbsent = status === 404 || status === 405;
      return isRefused
        ? { outcome: 'refused', reason: `${status}`, isAbsent }
        : { outcome: 'unknown', reason: `${status}` };
    } catch (error) {
      const { message, code } = reduceError(error);
      return unsent.has(`${code}`)
        ? { outcome: 'refused', reason: `${message}`, isAbsent: false }
        : { outcome: 'unknown', reason: `${message}` };
    }
  }

  #path(path: string): string {
    return new URL(path, this.#url).href;
  }
}

/**
 * Aborts a request that takes longer than `limit`, in milliseconds. The timeout of axios restarts with every byte that
 * arrives; `AbortSignal.timeout` would go off two seconds after each request that has long been answered.
 */
async function within<T>(limit: number, request: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(new Error(`no answer within ${limit} ms`)), limit);
  try {
    return await request(controller.signal);
  } finally {
    clearTimeout(timer);
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

function toPayment(attempt: Attempt) {
  const { amount, currency } = attempt;
  return { id: nameOf(attempt), value: toMajorUnits(amount, currency), currency };
}

/**
 * What one answer says of a payment. Definite is only what the contract calls so: 200 with the payment's own id; and
 * 402, 400 and 422 with a text that says why.
 * @param attempt undefined for the answer to an array as a whole
 */
function toEnding(attempt: Attempt | undefined, status: unknown, body: unknown): Ending {
  const { id, error } = (body ?? {}) as { id?: unknown; error?: unknown };
  if (status === 200 && attempt !== undefined && id === nameOf(attempt)) return charged;
  if (status === undefined || isDown(Number(status))) return unknownAsDown;
  if (typeof error !== 'string') return unknown;
  const reason = error.replaceAll('\0', '').slice(0, longestReason).toWellFormed();
  if (status === 402) return { outcome: 'declined', reason };
  return status === 400 || status === 422 ? { outcome: 'refused', reason } : unknown;
}

/** Statuses that speak of the provider, or of who asks, and never of a payment. */
function isDown(status: number): boolean {
  return status >= 500 || [401, 403, 429].includes(status);
}

/**
 * Finds each payment's outcome by its id, never by its place: an answer in another order, or one with too few
 * outcomes, must not end an attempt that it does not name.
 */
function matchAnswers(attempts: Attempt[], answers: unknown): Ending[] {
  if (!Array.isArray(answers) || answers.length !== attempts.length) return attempts.map(() => unknown);
  const byId = new Map<unknown, { status?: unknown } | undefined>();
  for (const answer of answers as ({ id?: unknown; status?: unknown } | null)[]) {
    // Two outcomes of one id contradict each other.
    byId.set(answer?.id, byId.has(answer?.id) ? undefined : (answer ?? undefined));
  }
  return attempts.map((attempt) => {
    const answer = byId.get(nameOf(attempt));
    return answer === undefined ? unknown : toEnding(attempt, answer.status ?? NaN, answer);
  });
}

function nameOf({ id }: Attempt): string {
  return `I${id}`;
}
