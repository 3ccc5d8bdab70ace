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
 * The outcome of an attempt that was sent. Refused: this request charged nothing, and repeating it never will. Unknown:
 * the attempt may or may not have been charged.
 */
export const everyOutcome = ['charged', 'declined', 'refused', 'unknown'] as const;
export type Outcome = (typeof everyOutcome)[number];

/** The result of trying to pay an attempt once. */
export interface AttemptResult {
  /** Not sent, or as if not sent: the provider ignores keys and certainly did not process the request. */
  outcome: Outcome | 'not sent';
  /** The reason for a decline or a refusal, in the provider's words. */
  reason?: string;
  /**
   * Whether the result has another cause than the payment, such as a provider that is down. If that is so for all
   * results of a batch, the run may give up. At a provider without keys, every unknown outcome counts as such a result.
   */
  seemsDown?: boolean;
  /** Whether this run must not retry the attempt. If the outcome is unknown, recovery never retries it either. */
  isFinal?: boolean;
}
const charged: AttemptResult = { outcome: 'charged' };
const unknown: AttemptResult = { outcome: 'unknown' };
const unknownDown: AttemptResult = { outcome: 'unknown', seemsDown: true };
const notSentDown: AttemptResult = { outcome: 'not sent', seemsDown: true };
const notSentDownFinal: AttemptResult = { outcome: 'not sent', seemsDown: true, isFinal: true };
/** Another process has marked the attempt or stored its outcome since this run read it. */
const takenByOther: AttemptResult = { outcome: 'not sent', isFinal: true };
/** The unknown outcome at a provider that ignores keys, where a retry could charge again. */
const unknownDownFinal: AttemptResult = { outcome: 'unknown', seemsDown: true, isFinal: true };

/** The data and callbacks with which a payment run calls the provider. */
export interface PayContext {
  requestId: string;
  /** Identifies the data that these payments belong to: that of both services since their last reset. */
  epoch: string;
  /** Whether this run still holds the lease of the batch. If not, it must send nothing. */
  isHeld(): boolean;
  /** Marks attempts before they are sent to a provider that ignores keys. @returns the attempts that may be sent */
  mark(attempts: Attempt[]): Promise<Attempt[]>;
  /** Removes the marks of attempts with the outcome 'not sent'. */
  unmark(attempts: Attempt[]): Promise<void>;
  /** Stores the charges, declines and refusals. Counts these and the unknown outcomes. */
  store(attempts: Attempt[], results: AttemptResult[]): Promise<void>;
}

/** The provider's response. Without one, status and data are undefined. */
interface ProviderResponse {
  status?: number;
  data?: unknown;
  /** Whether the provider certainly did not process this request: it was not sent, or rejected unread. */
  notProcessed: boolean;
}
/** The errors of connections that were never opened. */
const connectErrors = new Set(['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH']);

/**
 * The header that is `true` if the provider honours keys. The original provider of docs/differences.md does not send
 * it, and ignores keys.
 */
const honoursKeysHeader = 'Accept-Idempotency-Key';
/** The header with the epoch of a request's data. After a reset of that data, the provider charges nothing for it. */
const ledgerEpochHeader = 'Ledger-Epoch';

/** The result of a request to reset the provider. Unknown: the provider may have been reset, or may yet be. */
export type ResetResult =
  | { outcome: 'reset' }
  | { outcome: 'refused'; reason: string; /** Whether the provider offers no reset. */ isAbsent: boolean }
  | { outcome: 'unknown'; reason: string };

/** The maximum length of a stored reason, in UTF-16 code units. */
const maxReasonLength = 200;

/**
 * The response of invoice-app's `GET /version`. It includes the provider's own response, because the provider cannot be
 * reached from outside the cluster.
 */
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
  /** Whether the provider is known to honour keys. If not, its first response shows whether it does. */
  keys?: boolean;
  step?: Step;
  /** The adapter through which axios sends requests. */
  adapter?: AxiosAdapter;
}

/** How long the provider may take to respond, in milliseconds. */
const timeout = 2_000;
/** How long the provider may take to send its version, in milliseconds. No payment waits for it. */
const versionTimeout = 1_000;
/** The original provider's error for a body that is not a single payment. */
const notAPayment = 'failed to process payment request parameters';
/** The maximum size of a response, in bytes: more than the provider ever sends. */
const maxContentLength = 1_000_000;
/** The maximum number of connections to the provider. */
const connections = 64;
/**
 * Concurrent requests for one batch when each request is for one payment. This number times `workerCount` of
 * payments.ts must not exceed `connections`: a request that waits for a connection may time out.
 */
const concurrency = 10;
/**
 * How often results are stored while single payments are sent to a provider that honours keys, in milliseconds: a slow
 * run then shows progress.
 */
const storeInterval = 1_000;

/** The payment provider, reached over HTTP. */
export class Provider {
  readonly #url: string;
  readonly #tokenFile: string | undefined;
  readonly #log: Log;
  readonly #step: Step;
  readonly #http: AxiosInstance;
  #arrays: boolean;
  /**
   * Whether the provider honours the header with the key, by its last usable response. A provider that takes arrays
   * always honours the keys in them.
   */
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
   * Tries once to pay these attempts, each under its own key, and stores the results through `context`. Sends them as
   * an array. If the provider refuses the array, sends each in its own request, and may stop early.
   * @param attempts at most 1,000, the limit of one request to the provider
   * @returns the result of each, in the order of the attempts
   * @throws only errors of `context`
   */
  async pay(attempts: Attempt[], context: PayContext): Promise<AttemptResult[]> {
    const { requestId, epoch } = context;
    let headers: PaymentHeaders;
    try {
      headers = { 'X-Request-Id': requestId, [ledgerEpochHeader]: epoch, ...bearer(this.#tokenFile) };
    } catch (error) {
      this.#log.error({ requestId }, `the provider was not called: ${reduceError(error).message}`);
      return attempts.map(() => notSentDown);
    }
    if (this.#arrays) {
      const results = await this.#payArray(attempts, headers);
      if (results !== undefined) {
        await context.store(attempts, results);
        return results;
      }
    }
    return this.#payEach(attempts, headers, context);
  }

  /** Sends all payments in one request. Returns undefined if the provider refused the array and so charged nothing. */
  async #payArray(attempts: Attempt[], headers: PaymentHeaders): Promise<AttemptResult[] | undefined> {
    const payments = attempts.map((attempt) => ({ ...toPayment(attempt), idempotencyKey: attempt.key }));
    const { status, data } = await this.#post(payments, headers);
    const arrayResult = toResult(undefined, status, data);
    if (arrayResult.outcome === 'refused') {
      // The caller then sends each payment by itself, so that only a faulty one fails.
      // This reason means that the provider takes no arrays.
      if (arrayResult.reason === notAPayment) {
        this.#arrays = false;
        this.#log.info('the provider takes only one payment per request');
      }
      return undefined;
    }
    if (status !== 200) return attempts.map(() => (arrayResult.seemsDown ? unknownDown : unknown));
    return matchOutcomes(attempts, data);
  }

  /** Sends one request per payment. Stops early if the lease is lost, or if every result of a round seems down. */
  async #payEach(
    attempts: Attempt[],
    headers: PaymentHeaders,
    context: PayContext,
  ): Promise<AttemptResult[]> {
    const results = new Map<Attempt, AttemptResult>();
    const queue = [...attempts];
    while (queue.length > 0 && context.isHeld()) {
      const newResults = this.#keys
        ? await this.#payWithKeys(queue, headers, context)
        : await this.#payWithoutKeys(queue.splice(0, concurrency), headers, context);
      newResults.forEach((result, attempt) => results.set(attempt, result));
      if ([...newResults.values()].every(({ seemsDown }) => seemsDown)) break;
    }
    // The attempts left over. Without keys a run retries nothing, as each unknown outcome needs manual review.
    const rest = this.#keys ? notSentDown : notSentDownFinal;
    return attempts.map((attempt) => results.get(attempt) ?? rest);
  }

  /**
   * Pays at a provider that honours keys. Stops when the queue is empty, the lease is lost, or the provider stops
   * honouring keys or seems down. It seems down after as many failures in a row as there are concurrent requests.
   * @param queue the attempts; those that are sent are removed from it
   */
  async #payWithKeys(
    queue: Attempt[],
    headers: PaymentHeaders,
    context: PayContext,
  ): Promise<Map<Attempt, AttemptResult>> {
    const results = new Map<Attempt, AttemptResult>();
    let unstored: Attempt[] = [];
    let storedAt = performance.now();
    const store = async () => {
      const attempts = unstored.toSorted((a, b) => a.id - b.id);
      unstored = [];
      storedAt = performance.now();
      await context.store(
        attempts,
        attempts.map((attempt) => results.get(attempt)!),
      );
    };
    let downInARow = 0;
    const payFromQueue = async () => {
      while (queue.length > 0 && this.#keys && downInARow < concurrency && context.isHeld()) {
        const attempt = queue.shift()!;
        const result = await this.#payOne(attempt, headers);
        results.set(attempt, result);
        unstored.push(attempt);
        downInARow = result.seemsDown ? downInARow + 1 : 0;
        if (performance.now() - storedAt >= storeInterval) await store();
      }
    };
    const worker = () =>
      payFromQueue().catch((error: unknown) => {
        // The other workers finish only their current request.
        queue.length = 0;
        throw error;
      });
    await settleAll(Array.from({ length: concurrency }, worker));
    if (unstored.length > 0) await store();
    return results;
  }

  /**
   * Pays at a provider that ignores keys, where a second request would charge again. So each attempt is marked before
   * it is sent, and an unknown outcome is final.
   */
  async #payWithoutKeys(
    group: Attempt[],
    headers: PaymentHeaders,
    context: PayContext,
  ): Promise<Map<Attempt, AttemptResult>> {
    const marked = await context.mark(group);
    const sentResults = await Promise.all(marked.map((attempt) => this.#payOne(attempt, headers)));
    // A later run may send these again.
    const notSent = marked.filter((_attempt, index) => sentResults[index]?.outcome === 'not sent');
    if (notSent.length > 0) await context.unmark(notSent);
    await context.store(marked, sentResults);
    const results = new Map(group.map((attempt) => [attempt, takenByOther]));
    marked.forEach((attempt, index) => results.set(attempt, sentResults[index]!));
    return results;
  }

  async #payOne(attempt: Attempt, headers: PaymentHeaders): Promise<AttemptResult> {
    const hasKey = this.#keys;
    const { status, data, notProcessed } = await this.#post(toPayment(attempt), {
      ...headers,
      'Idempotency-Key': attempt.key,
    });
    const result = toResult(attempt, status, data);
    if (hasKey || result.outcome !== 'unknown') return result;
    return notProcessed ? notSentDownFinal : unknownDownFinal;
  }

  async #post(body: unknown, headers: PaymentHeaders): Promise<ProviderResponse> {
    const requestId = headers['X-Request-Id'];
    try {
      const response = await this.#step('post', () => {
        annotate({ 'payloop.payments': Array.isArray(body) ? body.length : 1 });
        const all = { ...headers, ...traceHeaders() };
        return within(timeout, (signal) => this.#http.post(this.#url, body, { headers: all, signal }));
      });
      const { status, data } = response;
      if ([200, 400, 402, 422].includes(status)) {
        this.#keys = response.headers[honoursKeysHeader.toLowerCase()] === 'true';
      } else {
        this.#log.warn({ requestId, status }, describeUnusable(status));
      }
      return { status, data, notProcessed: [401, 403, 429].includes(status) };
    } catch (error) {
      const { message, code } = reduceError(error);
      this.#log.warn({ requestId, code }, `the request to the provider failed: ${message}`);
      return { notProcessed: connectErrors.has(`${code}`) };
    }
  }

  /**
   * Reads the provider's own `/version`; null if there is no usable response. Opens a new connection, so that any
   * replica may respond.
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
   * Makes the provider forget every payment, and refuse later payments of this epoch. Never throws. A retry for the
   * same epoch changes nothing.
   */
  async reset(epoch: string): Promise<ResetResult> {
    let headers: Record<string, string>;
    try {
      headers = { [ledgerEpochHeader]: epoch, ...bearer(this.#tokenFile) };
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
      return connectErrors.has(`${code}`)
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
 * arrives, and the undici adapter has none. `AbortSignal.timeout` would also fire after the response.
 */
async function within<T>(limit: number, request: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(new Error(`no response within ${limit} ms`)), limit);
  try {
    return await request(controller.signal);
  } finally {
    clearTimeout(timer);
  }
}

function describeUnusable(status: number): string {
  const isRefused = status === 401 || status === 403;
  return isRefused ? 'the provider refused the token' : 'the provider gave no usable response';
}

function toPayment(attempt: Attempt) {
  const { amount, currency } = attempt;
  return { id: paymentIdOf(attempt), value: toMajorUnits(amount, currency), currency };
}

/**
 * Derives the result of an attempt from one response, see docs/contract.md. The outcome is unknown unless the response
 * is 200 with the payment's own id, or 402, 400 or 422 with a reason.
 *
 * A refused token is an unknown outcome too. This request charged nothing, but an earlier one with its key may have. A
 * retry sends the token that the file holds by then.
 * @param attempt undefined for the response to an array as a whole
 * @param status undefined without a response
 */
function toResult(attempt: Attempt | undefined, status: unknown, body: unknown): AttemptResult {
  const { id, error } = (body ?? {}) as { id?: unknown; error?: unknown };
  if (status === 200 && attempt !== undefined && id === paymentIdOf(attempt)) return charged;
  if (status === undefined || isDown(Number(status))) return unknownDown;
  if (typeof error !== 'string') return unknown;
  // Postgres stores neither U+0000 nor half of a surrogate pair, which `slice` may leave.
  const reason = error.replaceAll('\0', '').slice(0, maxReasonLength).toWellFormed();
  if (status === 402) return { outcome: 'declined', reason };
  return status === 400 || status === 422 ? { outcome: 'refused', reason } : unknown;
}

/** Whether a status is about the provider or the client, and never about a payment. */
function isDown(status: number): boolean {
  return status >= 500 || [401, 403, 429].includes(status);
}

/**
 * Matches outcomes to attempts by id, never by position, because the order may differ. With too few or too many
 * outcomes, every attempt is unknown.
 */
function matchOutcomes(attempts: Attempt[], outcomes: unknown): AttemptResult[] {
  if (!Array.isArray(outcomes) || outcomes.length !== attempts.length) return attempts.map(() => unknown);
  const byId = new Map<unknown, { status?: unknown } | undefined>();
  for (const outcome of outcomes as ({ id?: unknown; status?: unknown } | null)[]) {
    // Two outcomes with the same id: neither can be trusted.
    byId.set(outcome?.id, byId.has(outcome?.id) ? undefined : (outcome ?? undefined));
  }
  return attempts.map((attempt) => {
    const outcome = byId.get(paymentIdOf(attempt));
    // NaN, because undefined would mean that no response came. An outcome without a status is unusable.
    return outcome === undefined ? unknown : toResult(attempt, outcome.status ?? NaN, outcome);
  });
}

function paymentIdOf({ id }: Attempt): string {
  return `I${id}`;
}
