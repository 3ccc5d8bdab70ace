import { setTimeout as sleep } from 'node:timers/promises';
import { isLockTimeout, type Database, type Query } from '@payloop/chassis/database.ts';
import { HttpError } from '@payloop/chassis/http-error.ts';
import type { Step } from '@payloop/chassis/step.ts';
import { isLive } from './batches.ts';
import { resetInvoices } from './invoices.ts';
import type { Provider } from './provider.ts';

export interface ResetsOptions {
  database: Database;
  provider: Provider;
  /** Fills the database once it is empty. */
  seed: (query: Query) => Promise<void>;
  step: Step;
}

interface Begun {
  /** Of the data that are to go. */
  epoch: string;
  /** Whether another reset of them is unfinished: the provider may have been asked before. */
  isPending: boolean;
}

/** How long to wait for runs under way, and for tables that somebody else holds; and between two looks. In ms. */
const patience = { runs: 20_000, tables: 5_000 };
const pause = 50;
/** How old an unfinished reset must be for recovery to finish it, in seconds: its own process may be at it. */
const abandonedAfter = 5;

/** Everything that a reset replaces, locked at once: it must not find halfway that it cannot go on. */
const lockTables = 'LOCK TABLE batches, invoices, customers, payment_events IN ACCESS EXCLUSIVE MODE';

/**
 * Makes the data of both services anew. Like a charge, the provider's part of it has an unknown outcome where there is
 * no answer. So the database notes the reset before the provider is asked, nobody claims a batch from then on, and the
 * reset is finished, by recovery if need be, or taken back where the provider refuses it. Payments carry the epoch of
 * their data: the provider retires it with its ledger, and whatever comes in later for it charges nothing.
 */
export class Resets {
  readonly #options: ResetsOptions;
  readonly #step: Step;

  constructor(options: ResetsOptions) {
    this.#options = options;
    this.#step = options.step;
  }

  /**
   * Resets both services once no run is under way.
   * @throws {HttpError} 502 when the provider refuses or does not answer, 503 when it cannot begin or go on yet
   */
  async reset(): Promise<void> {
    const { epoch, isPending } = await this.#begin();
    await this.#finish(epoch, isPending);
  }

  /** Finishes a reset that another process, or an earlier request, has left unfinished. @throws as `reset` */
  async finishAbandoned(): Promise<void> {
    const { rows } = await this.#step('find reset', () =>
      this.#options.database.query<{ id: string }>(
        `SELECT id FROM epoch WHERE resetting_at NOT BETWEEN now() - make_interval(secs => $1) AND now()`,
        [abandonedAfter],
      ),
    );
    if (rows[0]) await this.#finish(rows[0].id, true);
  }

  async #begin(): Promise<Begun> {
    const start = performance.now();
    for (;;) {
      const begun = await this.#step('begin reset', () => this.#tryToBegin());
      if (typeof begun === 'object') return begun;
      const waited = performance.now() - start;
      if (begun === 'busy' && waited > patience.runs) {
        throw new HttpError(503, 'a payment run is under way, try again later');
      }
      if (begun === 'locked' && waited > patience.tables) {
        throw new HttpError(503, `nothing was reset: ${await this.#describeLocks()}`);
      }
      await this.#wait();
    }
  }

  async #tryToBegin(): Promise<Begun | 'busy' | 'locked'> {
    try {
      return await this.#options.database.transaction(async (query) => {
        await query(lockTables);
        const runs = await query(`SELECT FROM batches WHERE holder IS NOT NULL AND ${isLive} LIMIT 1`);
        if (runs.rows.length > 0) return 'busy';
        const { rows } = await query<Begun>(
          `UPDATE epoch SET resetting_at = now()
           RETURNING new.id AS epoch, old.resetting_at IS NOT NULL AS "isPending"`,
        );
        return rows[0]!;
      });
    } catch (error) {
      if (isLockTimeout(error)) return 'locked';
      throw error;
    }
  }

  /** @param isPending whether the provider may have been asked before */
  async #finish(epoch: string, isPending: boolean): Promise<void> {
    const answer = await this.#options.provider.reset(epoch);
    if (answer.outcome === 'refused' && (!isPending || answer.isAbsent)) {
      await this.#step('take reset back', () =>
        this.#options.database.query('UPDATE epoch SET resetting_at = NULL WHERE id = $1', [epoch]),
      );
      throw new HttpError(502, `the payment provider was not reset: ${answer.reason}`);
    }
    if (answer.outcome !== 'reset') {
      throw new HttpError(
        502,
        `it is unknown whether the payment provider was reset: ${answer.reason}. ` +
          'Nothing is paid until the reset is finished, which is tried again by itself',
      );
    }
    const start = performance.now();
    while (!(await this.#step('finish reset', () => this.#tryToFinish(epoch)))) {
      if (performance.now() - start > patience.tables) {
        const reason = await this.#describeLocks();
        throw new HttpError(
          503,
          `the payment provider is reset, and the invoices follow by themselves: ${reason}`,
        );
      }
      await this.#wait();
    }
  }

  /** Whether it is done, by whomever. */
  async #tryToFinish(epoch: string): Promise<boolean> {
    try {
      return await this.#options.database.transaction(async (query) => {
        await query(lockTables);
        const { rowCount } = await query(
          'UPDATE epoch SET id = uuidv7(), resetting_at = NULL WHERE id = $1',
          [epoch],
        );
        if (rowCount === 1) await resetInvoices(query, this.#options.seed);
        return true;
      });
    } catch (error) {
      if (isLockTimeout(error)) return false;
      throw error;
    }
  }

  async #wait(): Promise<void> {
    await this.#step('wait to reset', () => sleep(pause));
  }

  /** Who keeps a reset from its tables, for a person who can end that session. */
  async #describeLocks(): Promise<string> {
    const { rows } = await this.#options.database.query<{ who: string }>(
      `SELECT DISTINCT format('process %s of %s', pid, usename)
         || CASE WHEN application_name <> '' THEN format(' (%s)', application_name) ELSE '' END AS who
       FROM pg_locks JOIN pg_stat_activity USING (pid)
       WHERE granted AND pid <> pg_backend_pid() AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
         AND relation IN ('batches'::regclass, 'invoices'::regclass, 'customers'::regclass, 'payment_events'::regclass)`,
    );
    const who = rows.map((row) => row.who).join(', ') || 'somebody';
    return `an open transaction of another session holds the tables, ${who}. End it, and try again`;
  }
}
