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
 * The outcome of an attempt that was sent. Refused: this request charged nothing, and the same one never will. Unknown:
 * the attempt may or may not have been charged.
 */
export const everyOutcome = ['charged', 'declined', 'refused', 'unknown'] as const;
export type Outcome = (typeof everyOutcome)[number];

/** How an attempt ended, as far as one answer shows. */
export interface Ending {
  /** Unasked: no request was sent for it. */
  outcome: Outcome | 'unasked';
  /** The reason for a decline or a refusal, in the provider's words. */
  reason?: string;
  /** Whether the provider serves no client at the moment. The answer then says nothing about this payment. */
  down?: boolean;
  /** Whether this run must not retry it. If the outcome is unknown, recovery never retries it either. */
  isFinal?: boolean;
}
const charged: Ending = { outcome: 'charged' };
const unknown: Ending = { outcome: 'unknown' };
const unknownAsDown: Ending = { outcome: 'unknown', down: true };
const unasked: Ending = { outcome: 'unasked', down: true };
const unaskedForNow: Ending = { outcome: 'unasked', down: true, isFinal: true };
/** Another process has marked or ended it since it was read. */
const takenByOther: Ending = { outcome: 'unasked', isFinal: true };
/** The unknown outcome of a request that no key protects. */
const unsettled: Ending = { outcome: 'unknown', down: true, isFinal: true };

/** The data and callbacks with which a payment run calls the provider. */
export interface PayContext {
  requestId: string;
  /** The epoch of the payments' data. */
  epoch: string;
  /** Whether this run still holds the batch. If not, it must send nothing. */
  isHeld(): boolean;
  /** Marks attempts before requests that no key protects. @returns the attempts that may be sent */
  mark(attempts: Attempt[]): Promise<Attempt[]>;
  /** Removes the marks of attempts that charged nothing. */
  unmark(attempts: Attempt[]): Promise<void>;
  /** Stores the definite outcomes. */
  store(attempts: Attempt[], endings: Ending[]): Promise<void>;
}

/** The provider's answer, if there is one. */
interface Answer {
  status?: number;
  data?: unknown;
  /** Whether this request certainly charged nothing: it was never sent, or rejected unread. */
  isNeverCharged: boolean;
}
/** Error codes of connections that were never opened. */
const unsent = new Set(['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH']);

/** The header that is `true` if the provider honours keys. The original does not send it, and ignores keys. */
const honoursKeys = 'Accept-Idempotency-Key';
/** The header with the epoch of a request's data. After a reset of that data, the provider charges nothing for it. */
const ledgerEpoch = 'Ledger-Epoch';

/** The result of a request to reset the provider. Unknown: it may have been reset, or may still be. */
export type ResetAnswer =
  | { outcome: 'reset' }
  | { outcome: 'refused'; reason: string; /** Whether the provider offers no reset. */ isAbsent: boolean }
  | { outcome: 'unknown'; reason: string };

/** The most characters that are kept of a reason. Those that Postgres cannot store are removed. */
const longestReason = 200;

/** The answer of invoice-app's `GET /version`. Clients outside see the provider only here, as it describes itself. */
export const appVersion = () => {
  const providerVersion = z.looseObject(version().shape).partial().nullable();
  return version().extend({ provider: providerVersion }).meta({ id: 'AppVersion' });
};
export type AppVersion = z.infer<ReturnType<typeof appVersion>>;

/** The headers of every payment request. */
type PaymentHeaders = Record<string, string> & { 'X-Request-Id': string };

export interface ProviderOptions {
  /** The URL that payments are posted to. */
  url: string;
  /** The file with the token that identifies invoice-app; undefined to send no token. */
  tokenFile?: string | undefined;
  log: Log;
  /** False if the provider is known to take only one payment per request. */
  arrays?: boolean;
  /** Whether the provider is known to honour keys. Otherwise its answers tell. */
  keys?: boolean;
  step?: Step;
  /** The adapter through which axios sends requests. */
  adapter?: AxiosAdapter;
}

/** How long the provider may take to answer, in milliseconds. */
const timeout = 2_000;
/** The same for its version, which only the payment test waits for. */
const versionTimeout = 1_000;
/** The original's error for a body that is not a single payment. */
const notAPayment = 'failed to process payment request parameters';
/** More than any answer of the provider, in bytes. */
const maxContentLength = 1_000_000;
/** The most connections to the provider. */
const connections = 64;
/**
 * Concurrent requests for one batch when each request is for one payment. Times the batches in flight (`workers` in
 * payments.ts), they must not exceed the connections: a request that waits for a connection times out.
 */
const concurrency = 10;
/** How often answers are stored while a batch is paid one by one, in milliseconds: a slow run then shows progress. */
const storeInterval = 1_000;

/** The payment provider, reached over HTTP. */
export class Provider {
  readonly #url: string;
  readonly #tokenFile: string | undefined;
  readonly #log: Log;
  readonly #step: Step;
  readonly #http: AxiosInstance;
  #arrays: boolean;
  /** Whether the last answer said that keys are honoured. A provider that takes arrays takes their keys anyway. */
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
   * Sends each of these payments once, under its own key, and stores the outcomes through `context`.
   * @param attempts at most 1,000, the limit of one request to the provider
   * @returns how each ended, in the order of the attempts
   * @throws only errors of `context`
   */
  async pay(attempts: Attempt[], context: PayContext): Promise<Ending[]> {
    const { requestId, epoch } = context;
    let headers: PaymentHeaders;
    try {
      headers = { 'X-Request-Id': requestId, [ledgerEpoch]: epoch, ...bearer(this.#tokenFile) };
    } catch (error) {
      this.#log.error({ requestId }, `the provider was not called: ${reduceError(error).message}`);
      return attempts.map(() => unasked);
    }
    if (this.#arrays) {
      const endings = await this.#payArray(attempts, headers);
      if (endings !== undefined) {
        await context.store(attempts, endings);
        return endings;
      }
    }
    return this.#payEach(attempts, headers, context);
  }

  /** Sends all payments in one request; undefined if the provider refused the whole array and so charged nothing. */
  async #payArray(attempts: Attempt[], headers: PaymentHeaders): Promise<Ending[] | undefined> {
    const payments = attempts.map((attempt) => ({ ...toPayment(attempt), idempotencyKey: attempt.key }));
    const { status, data } = await this.#post(payments, headers);
    const whole = toEnding(undefined, status, data);
    if (whole.outcome === 'refused') {
      // Sent one by one, only the faulty payment fails. The original's error means that it takes no arrays.
      if (whole.reason === notAPayment) {
        this.#arrays = false;
        this.#log.info('the provider takes only one payment per request');
      }
      return undefined;
    }
    if (status !== 200) return attempts.map(() => (whole.down ? unknownAsDown : unknown));
    return matchAnswers(attempts, data);
  }

  /** Sends one request per payment. */
  async #payEach(attempts: Attempt[], headers: PaymentHeaders, context: PayContext): Promise<Ending[]> {
    const endings = new Map<Attempt, Ending>();
    const queue = [...attempts];
    while (queue.length > 0 && context.isHeld()) {
      const ended = this.#keys
        ? await this.#payProtected(queue, headers, context)
        : await this.#payMarked(queue.splice(0, concurrency), headers, context);
      ended.forEach((ending, attempt) => endings.set(attempt, ending));
      if ([...ended.values()].every(({ down }) => down)) break;
    }
    // A run without keys retries nothing: each unknown outcome costs a person's time.
    const rest = this.#keys ? unasked : unaskedForNow;
    return attempts.map((attempt) => endings.get(attempt) ?? rest);
  }

  /**
   * Pays at a provider that honours keys. Stops when the queue is empty, the lease is lost, or the provider stops
   * honouring keys or seems down. It seems down after as many failures in a row as there are concurrent requests.
   */
  async #payProtected(
    queue: Attempt[],
    headers: PaymentHeaders,
    context: PayContext,
  ): Promise<Map<Attempt, Ending>> {
    const endings = new Map<Attempt, Ending>();
    let unstored: Attempt[] = [];
    let storedAt = performance.now();
    const store = async () => {
      const attempts = unstored.toSorted((a, b) => a.id - b.id);
      unstored = [];
      storedAt = performance.now();
      await context.store(
        attempts,
        attempts.map((attempt) => endings.get(attempt)!),
      );
    };
    let downInARow = 0;
    const payNext = async () => {
      while (queue.length > 0 && this.#keys && downInARow < concurrency && context.isHeld()) {
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
        // The other workers finish only their current request.
        queue.length = 0;
        throw error;
      });
    await settleAll(Array.from({ length: concurrency }, worker));
    if (unstored.length > 0) await store();
    return endings;
  }

  /**
   * Pays at a provider that ignores keys, where a second request would charge again. So each payment is marked before
   * its request, and an unknown outcome is final.
   */
  async #payMarked(
    group: Attempt[],
    headers: PaymentHeaders,
    context: PayContext,
  ): Promise<Map<Attempt, Ending>> {
    const marked = await context.mark(group);
    const answers = await Promise.all(marked.map((attempt) => this.#payOne(attempt, headers)));
    // An attempt that certainly charged nothing may be retried.
    const free = marked.filter((_attempt, index) => answers[index]?.outcome === 'unasked');
    if (free.length > 0) await context.unmark(free);
    await context.store(marked, answers);
    const endings = new Map(group.map((attempt) => [attempt, takenByOther]));
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
   * Reads the provider's own `/version`; null if it does not answer. Opens a new connection, so that any replica may
   * answer.
   * @param signal aborts the request once no client waits for it
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
   * Makes the provider forget every payment of an epoch, and refuse later ones. Never throws. A retry for the same
   * epoch changes nothing.
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
 * arrives. `AbortSignal.timeout` would also fire for requests that were answered long before.
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
 * A refused token is an unknown outcome as well: this request charged nothing, but an earlier one with its key may
 * have. A retry sends the token that the file holds by then.
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
 * Derives the ending of a payment from one answer. Only answers that the contract calls definite count as such. They
 * are 200 with the payment's own id, and 402, 400 and 422 with a text that says why.
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

/** Whether a status is about the provider or the client, and never about a payment. */
function isDown(status: number): boolean {
  return status >= 500 || [401, 403, 429].includes(status);
}

/**
 * Finds each payment's outcome by its id, never by its position. An answer in another order, or with too few outcomes,
 * must not end an attempt that it does not name.
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
