import { setTimeout as sleep } from 'node:timers/promises';
import { DatabaseUnavailable, type Database } from '@payloop/chassis/database.ts';
import type { Step } from '@payloop/chassis/step.ts';
import { leaseSeconds, renew, type Batch } from './batches.ts';

/** Renewals per lease term. One may fail. If two in a row fail, the lease expires as the next one is due. */
const renewals = 3;

/**
 * The lease of a claimed batch. It is renewed while its holder works, however long that takes. Once it is lost, the
 * holder sends no more payments.
 */
export class Lease {
  readonly #database: Database;
  readonly #step: Step;
  readonly #batch: Batch;
  readonly #ended = new AbortController();
  #renewedAt: number;
  #isLost = false;

  /** @param claimSentAt when the claim was sent, in milliseconds of `performance.now()` */
  constructor(database: Database, step: Step, batch: Batch, claimSentAt: number) {
    this.#database = database;
    this.#step = step;
    this.#batch = batch;
    this.#renewedAt = claimSentAt;
  }

  /** Whether no other process can have claimed the batch. */
  get isHeld(): boolean {
    // Checks this process's own clock too, because a renewal that failed may have been stored or not.
    return !this.#isLost && performance.now() - this.#renewedAt < leaseSeconds * 1_000;
  }

  /** Records that another claim holds the batch. */
  lose(): void {
    this.#isLost = true;
  }

  /** Renews the lease once. @throws {DatabaseUnavailable} */
  async renew(): Promise<void> {
    const sentAt = performance.now();
    const isMine = await renew(this.#database, this.#batch);
    if (isMine) this.#renewedAt = sentAt;
    else this.lose();
  }

  /** Renews the lease in the background until `end` is called. */
  keep(): void {
    // The loop fails only in a process that is about to exit.
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
        // The next renewal may succeed. Until then, the time of the last one counts.
        if (!(error instanceof DatabaseUnavailable)) throw error;
      }
    }
  }
}
