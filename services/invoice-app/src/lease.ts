import { setTimeout as sleep } from 'node:timers/promises';
import { DatabaseUnavailable, type Database } from '@payloop/chassis/database.ts';
import type { Step } from '@payloop/chassis/step.ts';
import { leaseSeconds, renew, type Batch } from './batches.ts';

/** Renewals in the time of a lease: two may fail before it runs out. */
const renewals = 3;

/**
 * The lease of a claimed batch. It is renewed for as long as its holder works, however long that takes, and its holder
 * stops asking for payments once it is lost.
 */
export class Lease {
  readonly #database: Database;
  readonly #step: Step;
  readonly #batch: Batch;
  readonly #ended = new AbortController();
  #renewedAt: number;
  #isLost = false;

  /** @param claimedAt of `performance.now()`, before the claim was sent */
  constructor(database: Database, step: Step, batch: Batch, claimedAt: number) {
    this.#database = database;
    this.#step = step;
    this.#batch = batch;
    this.#renewedAt = claimedAt;
  }

  /** Whether nobody else can have taken the batch over. */
  get isHeld(): boolean {
    // By this process's own clock too: a renewal that gets no answer proves nothing.
    return !this.#isLost && performance.now() - this.#renewedAt < leaseSeconds * 1_000;
  }

  /** Takes in that it is somebody else's. */
  lose(): void {
    this.#isLost = true;
  }

  /** Renews it now. @throws {DatabaseUnavailable} */
  async renew(): Promise<void> {
    const sentAt = performance.now();
    const isMine = await renew(this.#database, this.#batch);
    if (isMine) this.#renewedAt = sentAt;
    else this.lose();
  }

  /** Renews it from now on, until `end`. */
  keep(): void {
    // Its only errors are of a process that is about to end.
    this.#keep().catch(() => {});
  }

  end(): void {
    this.#ended.abort();
  }

  async #keep(): Promise<void> {
    const { signal } = this.#ended;
    const pause = (leaseSeconds * 1_000) / renewals;
    while (!signal.aborted && !this.#isLost) {
      await this.#step('heartbeat', () => sleep(pause, undefined, { signal }).catch(() => {}));
      if (signal.aborted) return;
      try {
        await this.#step('keep', () => this.renew());
      } catch (error) {
        // The next one may get through; until then the time of the last one counts.
        if (!(error instanceof DatabaseUnavailable)) throw error;
      }
    }
  }
}
