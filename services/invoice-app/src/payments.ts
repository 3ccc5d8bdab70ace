import { setTimeout as sleep } from 'node:timers/promises';
import type { Database } from '@payloop/chassis/database.ts';
import { reduceError, type Log } from '@payloop/chassis/log.ts';
import { settleAll } from '@payloop/chassis/settle-all.ts';
import type { Step } from '@payloop/chassis/step.ts';
import { annotate, activeSpan, withParents, span, type ParentSpan } from '@payloop/chassis/tracing.ts';
import {
  ExponentialBackoff,
  fullJitterGenerator,
  handleWhenResult,
  retry,
  type IBackoffFactory,
} from 'cockatiel';
import { z } from 'zod';
import * as batches from './batches.ts';
import { countStuck, type Attempt } from './invoices.ts';
import { Lease } from './lease.ts';
import type { Resets } from './reset.ts';
import {
  everyOutcome,
  type AttemptResult,
  type Outcome,
  type PayContext,
  type Provider,
} from './provider.ts';

/**
 * The result of a run: its invoices, counted by outcome. `refused`, and for a provider without keys `unknown`, include
 * invoices of earlier runs that still wait for manual review.
 */
export const tallyBody = () =>
  z.object({
    paid: z.int(),
    declined: z.int(),
    refused: z.int().meta({
      description:
        'All that are refused after the run, in this run or an earlier one. Each waits until it is changed.',
    }),
    unknown: z.int(),
    left: z.int().optional().meta({
      description: 'Those that this run did not get to; absent if there are none.',
    }),
  });
export type Tally = z.infer<ReturnType<typeof tallyBody>>;

export interface PaymentsOptions {
  database: Database;
  provider: Provider;
  /** Identifies this process as a lease holder. */
  holder: string;
  step: Step;
  log: Log;
  /** Counts payments by their outcome, again for each retry. */
  countOutcomes?: (outcome: Outcome, payments: number) => void;
  /** Counts a claim by the state in which it found the batch. */
  countClaim?: (found: BatchState) => void;
  /** How long to wait before an unknown outcome is retried. */
  backoff?: IBackoffFactory<unknown>;
  /** Finishes abandoned resets. */
  resets?: Pick<Resets, 'finishAbandoned'>;
  /** How long a worker waits for its next batch while other claims hold all remaining ones, in milliseconds. */
  patience?: number;
}

/** The state in which a claim finds a batch. Abandoned: its holder never released it; it crashed, or was too slow. */
export const batchStates = ['free', 'abandoned'] as const;
export type BatchState = (typeof batchStates)[number];

/** The remaining work and the results of a run, shared by its workers. */
interface Run {
  requestId: string;
  /** The first ids of the batches that this run has yet to claim, or lost the lease of. */
  remaining: Set<number>;
  tally: Tally;
  /** Whether the provider seems down or a worker has failed. No worker then claims another batch. */
  givenUp: boolean;
}

/** Batches in flight at a time. While one waits for the provider, another is stored. */
const workerCount = 6;
/** Retries of one attempt in a run, after the first try, while it has no definite outcome. */
const retries = 3;
/** The pause before the next claim while other claims hold all remaining batches, in milliseconds. */
const claimDelay = 50;
/** The mean interval between checks for expired leases, in milliseconds. */
const recoveryInterval = 2_000;
/** The default of `patience`, in milliseconds: longer than most runs hold a batch. */
const defaultPatience = 60_000;

const defaultBackoff = () =>
  new ExponentialBackoff({ initialDelay: 100, maxDelay: 2_000, generator: fullJitterGenerator });

/** Pays invoices. README.md lists, under Payments, the rules that hold even if any process crashes at any time. */
export class Payments {
  readonly #options: PaymentsOptions;
  readonly #step: Step;
  readonly #retry;
  readonly #stopping = new AbortController();
  #claims = 0;
  #running: Promise<Tally> | undefined;
  #next: Promise<Tally> | undefined;
  /** The spans of the callers that wait for the next run. */
  #waiting: (ParentSpan | undefined)[] = [];
  #recovery: Promise<void> | undefined;

  constructor(options: PaymentsOptions) {
    this.#options = options;
    this.#step = options.step;
    // Within a run, nothing else retries a request. Each retry sends the same key.
    this.#retry = retry(
      handleWhenResult((toRetry) => Array.isArray(toRetry) && toRetry.length > 0),
      { maxAttempts: retries, backoff: options.backoff ?? defaultBackoff() },
    );
  }

  /**
   * Pays every payable invoice. Calls during a run share the run that follows it, which usually finds none.
   * @throws {DatabaseUnavailable} when the database fails midway; recovery then reclaims the batches in flight
   */
  pay(requestId: string): Promise<Tally> {
    this.#waiting.push(activeSpan());
    if (this.#running === undefined) return this.#start(requestId);
    // The current run may have missed invoices added since it began. All callers until its end share one more run.
    this.#next ??= this.#running.then(
      () => this.#start(requestId),
      () => this.#start(requestId),
    );
    return this.#next;
  }

  #start(requestId: string): Promise<Tally> {
    this.#next = undefined;
    const waiting = this.#waiting.splice(0);
    const run = () => span('run', () => this.#payPayable(requestId));
    this.#running = withParents(() => waiting, run).finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  /** Recovers in the background until `stop` is called: see `recoverOnce`. */
  startRecovery(): void {
    this.#recovery ??= this.#recover();
  }

  /** Finishes the batches in flight and claims no other. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#running?.catch(() => {});
    await this.#next?.catch(() => {});
    await this.#recovery;
  }

  /** Finishes an abandoned reset. Then reclaims the batches with an expired lease, and pays them. */
  async recoverOnce(requestId = 'recovery'): Promise<Tally> {
    await this.#options.resets?.finishAbandoned();
    const expired = await this.#step('find expired', () => batches.findExpired(this.#options.database));
    if (expired.length === 0) return { paid: 0, declined: 0, refused: 0, unknown: 0 };
    return span('recover', () => this.#work(expired, requestId));
  }

  async #recover(): Promise<void> {
    const { signal } = this.#stopping;
    while (!signal.aborted) {
      try {
        await this.recoverOnce();
      } catch (err) {
        this.#options.log.debug(`recovery will be retried: ${reduceError(err).message}`);
      }
      // Jittered, so that replicas do not poll in step.
      const pause = recoveryInterval * (0.5 + Math.random());
      await this.#step('pause', () => sleep(pause, undefined, { signal }).catch(() => {}));
    }
  }

  async #payPayable(requestId: string): Promise<Tally> {
    const payable = await this.#step('find unpaid', () => batches.findPayable(this.#options.database));
    const tally = await this.#work(payable, requestId);
    const stuck = await this.#step('count stuck', () => countStuck(this.#options.database));
    tally.refused = stuck.refused;
    tally.unknown += stuck.unsettled;
    return tally;
  }

  async #work(among: number[], requestId: string): Promise<Tally> {
    const tally: Tally = { paid: 0, declined: 0, refused: 0, unknown: 0 };
    const run: Run = { requestId, remaining: new Set(among), tally, givenUp: false };
    const workers = Array.from({ length: Math.min(workerCount, among.length) }, () => this.#payBatches(run));
    await settleAll(workers);
    if (run.remaining.size > 0) {
      const left = [...run.remaining];
      const notSent = await this.#step('count left', () =>
        batches.countPayable(this.#options.database, left),
      );
      addLeft(tally, notSent);
    }
    annotate({
      'payloop.paid': tally.paid,
      'payloop.declined': tally.declined,
      'payloop.refused': tally.refused,
      'payloop.unknown': tally.unknown,
    });
    return tally;
  }

  async #payBatches(run: Run): Promise<void> {
    try {
      await this.#claimAndPay(run);
    } catch (error) {
      // The other workers finish only their current batch.
      run.givenUp = true;
      throw error;
    }
  }

  async #claimAndPay(run: Run): Promise<void> {
    const { database, holder, patience = defaultPatience } = this.#options;
    let gotAt = performance.now();
    while (run.remaining.size > 0 && !run.givenUp && !this.#stopping.signal.aborted) {
      const among = [...run.remaining];
      const claimSentAt = performance.now();
      this.#claims += 1;
      const claimHolder = `${holder}/${this.#claims}`;
      const batch = await this.#step('claim', () => batches.claim(database, claimHolder, among));
      if (batch === undefined) {
        // Other claims hold all remaining batches. This run waits, to pay the invoices that they leave.
        if (performance.now() - gotAt > patience) return;
        await this.#step('wait', () => sleep(claimDelay));
      } else if (!run.remaining.delete(batch.first)) {
        // Another worker of this run has processed it since `among` was created.
        await this.#release(batch, batch.leftOpen);
      } else {
        this.#options.countClaim?.(batch.abandoned ? 'abandoned' : 'free');
        await span('batch', () => this.#payBatch(batch, run, claimSentAt));
        gotAt = performance.now();
      }
    }
  }

  async #payBatch(batch: batches.Batch, run: Run, claimSentAt: number): Promise<void> {
    const { database } = this.#options;
    const attempts = await this.#step('read attempts', () => batches.readAttempts(database, batch));
    const lease = new Lease(database, this.#step, batch, claimSentAt);
    lease.keep();
    try {
      const results = await this.#payAttempts(attempts, batch, lease, run);
      if (!lease.isHeld) {
        // The new holder uses the same keys. This run claims the batch again once that holder is done.
        run.remaining.add(batch.first);
        return;
      }
      const countIf = (test: (result: AttemptResult) => boolean) => [...results.values()].filter(test).length;
      const unknown = countIf(({ outcome, isFinal }) => outcome === 'unknown' && !isFinal);
      const notSent = countIf(({ outcome }) => outcome === 'not sent');
      run.tally.unknown += unknown;
      addLeft(run.tally, notSent);
      const needsReview = countIf(({ outcome, isFinal }) => outcome === 'unknown' && isFinal === true) > 0;
      // An earlier holder may have sent requests and crashed, even if the batch was claimed and released since.
      if (needsReview || batch.leftOpen) {
        await this.#step('list unknown', () => batches.listUnknown(database, batch));
      }
      // Recovery must also retry attempts that an earlier holder may have sent and this one did not.
      const needsRecovery = unknown > 0 || (batch.leftOpen && notSent > 0);
      await this.#release(batch, needsRecovery);
    } finally {
      lease.end();
    }
  }

  async #release(batch: batches.Batch, needsRecovery: boolean): Promise<void> {
    await this.#step('release', () => batches.release(this.#options.database, batch, needsRecovery));
  }

  /**
   * Sends each attempt, and retries it while its outcome is unknown or it was not sent.
   * @returns the result of the last request for each attempt; none for those that the run did not try
   */
  async #payAttempts(
    attempts: Attempt[],
    batch: batches.Batch,
    lease: Lease,
    run: Run,
  ): Promise<Map<Attempt, AttemptResult>> {
    const results = new Map<Attempt, AttemptResult>();
    if (attempts.length === 0) return results;
    const context = this.#createContext(batch, lease, run);
    let toSend = attempts;
    await this.#retry.execute(async ({ attempt: retryNumber }) => {
      if (retryNumber > 0) await this.#step('renew', () => lease.renew());
      if (!lease.isHeld) return [];
      const newResults = await this.#options.provider.pay(toSend, context);
      toSend.forEach((attempt, index) => {
        const result = newResults[index]!;
        // An attempt that was sent before, but not this time, keeps its earlier result.
        if (result.outcome !== 'not sent' || !results.has(attempt)) results.set(attempt, result);
      });
      // After the last retry, gives up if no attempt of the batch has ended and the provider seems down.
      run.givenUp ||=
        toSend.length === attempts.length &&
        retryNumber === retries &&
        newResults.every(({ seemsDown }) => seemsDown);
      // Without keys nothing is retried, so gives up as soon as the provider seems down.
      run.givenUp ||= newResults.every(({ seemsDown, isFinal }) => seemsDown && isFinal);
      toSend = toSend.filter((_attempt, index) => isRetried(newResults[index]!));
      return toSend;
    });
    return results;
  }

  #createContext(batch: batches.Batch, lease: Lease, { requestId, tally }: Run): PayContext {
    const { database, countOutcomes } = this.#options;
    const mark = async (attempts: Attempt[]) => {
      const marked = await this.#step('mark', () => batches.mark(database, batch, attempts));
      if (marked === undefined) lease.lose();
      return marked ?? [];
    };
    const unmark = (attempts: Attempt[]) => this.#step('unmark', () => batches.unmark(database, attempts));
    const store = async (attempts: Attempt[], results: AttemptResult[]) => {
      await this.#step('record', () => batches.record(database, attempts, results));
      const numberOf = (outcome: Outcome) => results.filter((result) => result.outcome === outcome).length;
      if (numberOf('refused') > 0) {
        await this.#step('refuse', () => batches.refuse(database, attempts, results));
      }
      for (const outcome of everyOutcome) {
        if (numberOf(outcome) > 0) countOutcomes?.(outcome, numberOf(outcome));
      }
      tally.paid += numberOf('charged');
      tally.declined += numberOf('declined');
      tally.refused += numberOf('refused');
    };
    return { requestId, epoch: batch.epoch, isHeld: () => lease.isHeld, mark, unmark, store };
  }
}

/** Whether this run retries an attempt with this result. Unless it is final, any outcome but these three is. */
function isRetried({ outcome, isFinal }: AttemptResult): boolean {
  return !isFinal && !['charged', 'declined', 'refused'].includes(outcome);
}

function addLeft(tally: Tally, count: number): void {
  if (count > 0) tally.left = (tally.left ?? 0) + count;
}
