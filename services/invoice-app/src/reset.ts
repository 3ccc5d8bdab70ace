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
  /** Fills the empty database. */
  seed: (query: Query) => Promise<void>;
  step: Step;
}

interface Begun {
  /** The epoch of the data to delete. */
  epoch: string;
  /** Whether an earlier reset of that data is unfinished: the provider may have been called already. */
  isPending: boolean;
}

/** How long to wait for payment runs, for locked tables, and between checks, in milliseconds. */
const patience = { runs: 20_000, tables: 5_000 };
const pause = 50;
/** How old an unfinished reset must be before recovery finishes it, in seconds: its own process may be doing so. */
const abandonedAfter = 5;

/** Locks at once all tables that a reset replaces, so that a reset cannot get stuck halfway. */
const lockTables = 'LOCK TABLE batches, invoices, customers, payment_events IN ACCESS EXCLUSIVE MODE';

/**
 * Resets the data of both services. Without a response of the provider, its part has an unknown outcome, like a charge.
 * So the database records the reset before the provider is called, and no batch can be claimed from then on. The reset
 * is then finished, by recovery if need be, or cancelled if the provider refuses it. Payments carry the epoch of their
 * data. The provider retires that epoch with its ledger and charges nothing for later requests with it.
 */
export class Resets {
  readonly #options: ResetsOptions;
  readonly #step: Step;

  constructor(options: ResetsOptions) {
    this.#options = options;
    this.#step = options.step;
  }

  /**
   * Resets both services once no payment run is in progress.
   * @throws {HttpError} 502 when the provider refuses or does not respond, 503 when the reset cannot begin or go on yet
   */
  async reset(): Promise<void> {
    const { epoch, isPending } = await this.#begin();
    await this.#finish(epoch, isPending);
  }

  /** Finishes a reset that another process or an earlier request left unfinished. @throws as `reset` */
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
        throw new HttpError(503, 'a payment run is in progress, try again later');
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

  /** @param isPending whether the provider may have been called before */
  async #finish(epoch: string, isPending: boolean): Promise<void> {
    const result = await this.#options.provider.reset(epoch);
    if (result.outcome === 'refused' && (!isPending || result.isAbsent)) {
      await this.#step('cancel reset', () =>
        this.#options.database.query('UPDATE epoch SET resetting_at = NULL WHERE id = $1', [epoch]),
      );
      throw new HttpError(502, `the payment provider was not reset: ${result.reason}`);
    }
    if (result.outcome !== 'reset') {
      throw new HttpError(
        502,
        `it is unknown whether the payment provider was reset: ${result.reason}. ` +
          'Nothing is paid until the reset is finished, and it is retried automatically',
      );
    }
    const start = performance.now();
    while (!(await this.#step('finish reset', () => this.#tryToFinish(epoch)))) {
      if (performance.now() - start > patience.tables) {
        const reason = await this.#describeLocks();
        throw new HttpError(
          503,
          `the payment provider was reset, and the invoices will be reset automatically: ${reason}`,
        );
      }
      await this.#wait();
    }
  }

  /** Returns whether the reset is finished, by this process or another. */
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

  /** Names the sessions that lock the tables, so that an operator can end them. */
  async #describeLocks(): Promise<string> {
    const { rows } = await this.#options.database.query<{ who: string }>(
      `SELECT DISTINCT format('process %s of %s', pid, usename)
         || CASE WHEN application_name <> '' THEN format(' (%s)', application_name) ELSE '' END AS who
       FROM pg_locks JOIN pg_stat_activity USING (pid)
       WHERE granted AND pid <> pg_backend_pid() AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
         AND relation IN ('batches'::regclass, 'invoices'::regclass, 'customers'::regclass, 'payment_events'::regclass)`,
    );
    const who = rows.map((row) => row.who).join(', ') || 'unknown process';
    return `an open transaction of another session locks the tables: ${who}. End it and try again`;
  }
}
