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
import { everyOutcome, type PayContext, type Ending, type Outcome, type Provider } from './provider.ts';

/** The invoices of one run, counted by outcome. */
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
  /** Counts the provider's answers, in each request. */
  count?: (outcome: Outcome, payments: number) => void;
  /** Counts each claimed batch. */
  countClaim?: (found: BatchState) => void;
  /** How long to wait before an unknown outcome is retried. */
  backoff?: IBackoffFactory<unknown>;
  /** Finishes abandoned resets. */
  resets?: Pick<Resets, 'finishAbandoned'>;
  /** How long to wait for batches that others hold, in milliseconds; longer than most runs take. */
  patience?: number;
}

/** The state in which a claim finds a batch. Abandoned: its holder never released it. */
export const batchStates = ['free', 'abandoned'] as const;
export type BatchState = (typeof batchStates)[number];

/** The remaining work and the results of a run, shared by its workers. */
interface Run {
  requestId: string;
  /** Batches that no worker of this run has claimed yet, by the first id in them. */
  remaining: Set<number>;
  tally: Tally;
  /** Set once every answer to a batch shows that the provider is down. No worker then begins another batch. */
  givenUp: boolean;
}

/** Batches in flight at a time: one waits for the provider while another is stored. */
const workers = 6;
/** Retries of one invoice in a run, after the first request, while its outcome stays unknown. */
const retries = 3;
/** The pause before the next claim while other claims hold all remaining batches, in milliseconds. */
const claimDelay = 50;
/** The mean interval between checks for expired leases, in milliseconds. */
const recoveryInterval = 2_000;
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
    // The only layer that retries, always under the same key.
    this.#retry = retry(
      handleWhenResult((left) => Array.isArray(left) && left.length > 0),
      { maxAttempts: retries, backoff: options.backoff ?? defaultBackoff() },
    );
  }

  /**
   * Pays every unpaid invoice. Calls during a run share the run that follows it, which mostly finds nothing left to do.
   * @returns the number of paid, declined and refused invoices, of unknown outcomes, and of invoices that the run did
   * not get to
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
    const run = () => span('run', () => this.#payUnpaid(requestId));
    this.#running = withParents(() => waiting, run).finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  /** Reclaims expired leases in the background until `stop` is called. */
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

  /** Reclaims every expired lease once, and finishes an abandoned reset. */
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

  async #payUnpaid(requestId: string): Promise<Tally> {
    const unpaid = await this.#step('find unpaid', () => batches.findUnpaid(this.#options.database));
    const tally = await this.#work(unpaid, requestId);
    const stuck = await this.#step('count stuck', () => countStuck(this.#options.database));
    tally.refused = stuck.refused;
    tally.unknown += stuck.unsettled;
    return tally;
  }

  async #work(among: number[], requestId: string): Promise<Tally> {
    const tally: Tally = { paid: 0, declined: 0, refused: 0, unknown: 0 };
    const run: Run = { requestId, remaining: new Set(among), tally, givenUp: false };
    await settleAll(Array.from({ length: Math.min(workers, among.length) }, () => this.#payBatches(run)));
    if (run.remaining.size > 0) {
      const left = [...run.remaining];
      const unasked = await this.#step('count left', () =>
        batches.countPayable(this.#options.database, left),
      );
      addLeft(tally, unasked);
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
      const claimedAt = performance.now();
      this.#claims += 1;
      const name = `${holder}/${this.#claims}`;
      const batch = await this.#step('claim', () => batches.claim(database, name, among));
      if (batch === undefined) {
        // Other claims hold all remaining batches. This run then pays the invoices that they leave.
        if (performance.now() - gotAt > patience) return;
        await this.#step('wait', () => sleep(claimDelay));
      } else if (!run.remaining.delete(batch.first)) {
        // Another worker of this run has processed it since `among` was created.
        await this.#release(batch, batch.leftOpen);
      } else {
        this.#options.countClaim?.(batch.abandoned ? 'abandoned' : 'free');
        await span('batch', () => this.#payBatch(batch, run, claimedAt));
        gotAt = performance.now();
      }
    }
  }

  async #payBatch(batch: batches.Batch, run: Run, claimedAt: number): Promise<void> {
    const { database } = this.#options;
    const attempts = await this.#step('read attempts', () => batches.readAttempts(database, batch));
    const lease = new Lease(database, this.#step, batch, claimedAt);
    lease.keep();
    try {
      const endings = await this.#payAttempts(attempts, batch, lease, run);
      if (!lease.isHeld) {
        // The new holder uses the same keys. This run claims the batch again once that holder is done.
        run.remaining.add(batch.first);
        return;
      }
      const count = (fits: (ending: Ending) => boolean) => [...endings.values()].filter(fits).length;
      const unknown = count(({ outcome, isFinal }) => outcome === 'unknown' && !isFinal);
      const unasked = count(({ outcome }) => outcome === 'unasked');
      run.tally.unknown += unknown;
      addLeft(run.tally, unasked);
      const isListed = count(({ outcome, isFinal }) => outcome === 'unknown' && isFinal === true) > 0;
      // An earlier holder may have sent requests and crashed, even if the batch was claimed and released since.
      if (isListed || batch.leftOpen) {
        await this.#step('list unknown', () => batches.listUnknown(database, batch));
      }
      // Recovery stays responsible for invoices that an earlier holder left open and this one did not get to.
      const isUnknown = unknown > 0 || (batch.leftOpen && unasked > 0);
      await this.#release(batch, isUnknown);
    } finally {
      lease.end();
    }
  }

  async #release(batch: batches.Batch, isUnknown: boolean): Promise<void> {
    await this.#step('release', () => batches.release(this.#options.database, batch, isUnknown));
  }

  /** Sends each attempt, and retries it while its outcome is unknown. @returns the last known ending of each */
  async #payAttempts(
    attempts: Attempt[],
    batch: batches.Batch,
    lease: Lease,
    run: Run,
  ): Promise<Map<Attempt, Ending>> {
    const endings = new Map<Attempt, Ending>();
    if (attempts.length === 0) return endings;
    const context = this.#createContext(batch, lease, run);
    let open = attempts;
    await this.#retry.execute(async ({ attempt }) => {
      if (attempt > 0) await this.#step('renew', () => lease.renew());
      if (!lease.isHeld) return [];
      const given = await this.#options.provider.pay(open, context);
      open.forEach((each, index) => {
        const ending = given[index]!;
        // An attempt that was sent before, but not this time, keeps its earlier ending.
        if (ending.outcome !== 'unasked' || !endings.has(each)) endings.set(each, ending);
      });
      run.givenUp ||=
        open.length === attempts.length && attempt === retries && given.every(({ down }) => down);
      run.givenUp ||= given.every(({ down, isFinal }) => down && isFinal);
      open = open.filter((_each, index) => isOpen(given[index]!));
      return open;
    });
    return endings;
  }

  #createContext(batch: batches.Batch, lease: Lease, { requestId, tally }: Run): PayContext {
    const { database, count } = this.#options;
    const mark = async (attempts: Attempt[]) => {
      const marked = await this.#step('mark', () => batches.mark(database, batch, attempts));
      if (marked === undefined) lease.lose();
      return marked ?? [];
    };
    const unmark = (attempts: Attempt[]) => this.#step('unmark', () => batches.unmark(database, attempts));
    const store = async (attempts: Attempt[], endings: Ending[]) => {
      await this.#step('record', () => batches.record(database, attempts, endings));
      const numberOf = (outcome: Outcome) => endings.filter((ending) => ending.outcome === outcome).length;
      if (numberOf('refused') > 0) {
        await this.#step('refuse', () => batches.refuse(database, attempts, endings));
      }
      for (const outcome of everyOutcome) if (numberOf(outcome) > 0) count?.(outcome, numberOf(outcome));
      tally.paid += numberOf('charged');
      tally.declined += numberOf('declined');
      tally.refused += numberOf('refused');
    };
    return { requestId, epoch: batch.epoch, isHeld: () => lease.isHeld, mark, unmark, store };
  }
}

/** Whether this run retries the attempt. A list of names, as no other outcome may ever end an attempt. */
function isOpen({ outcome, isFinal }: Ending): boolean {
  return !isFinal && !['charged', 'declined', 'refused'].includes(outcome);
}

function addLeft(tally: Tally, count: number): void {
  if (count > 0) tally.left = (tally.left ?? 0) + count;
}
