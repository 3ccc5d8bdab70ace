import { setTimeout } from 'node:timers/promises';
import pg from 'pg';
import type { Log } from './log.ts';
import { HttpError } from './http-error.ts';

/** Postgres cannot be reached, or is not ready yet. */
export class DatabaseUnavailable extends HttpError {
  override name = 'DatabaseUnavailable';

  constructor(cause?: unknown, message = 'database unavailable') {
    super(503, message);
    this.cause = cause;
  }
}

/** Runs one statement; the pool's or a transaction's. */
export type Query = <R extends pg.QueryResultRow>(
  text: string,
  values?: unknown[],
) => Promise<pg.QueryResult<R>>;

/** A step of the schema. Once released it never changes: a later step mends it. */
export interface Migration {
  name: string;
  sql: string;
}

export interface DatabaseOptions {
  url: string;
  migrations: Migration[];
  /** Runs after the migrations, under the same lock. */
  seed?: (query: Query) => Promise<void>;
  log: Log;
  service: string;
}

/** How long a statement may take, and how long it may take to reach Postgres, in milliseconds. */
const statementTimeout = 10_000;
const connectTimeout = 2_000;
/** How long a statement waits for a row that another one holds, in milliseconds. */
const lockTimeout = 2_000;
/** The wait between two attempts to reach a database that is away, in milliseconds. */
const retryDelay = { first: 100, most: 2_000 };

/**
 * A service's database: a pool that survives Postgres going away, and a schema that is brought up to date
 * in the background, so that a service without its database is live, not ready, and recovers by itself.
 */
export class Database {
  readonly #pool: pg.Pool;
  readonly #options: DatabaseOptions;
  readonly #closing = new AbortController();
  #migrated = false;
  /** Settles when the schema is up to date (true) or the database was closed before (false). */
  readonly opened: Promise<boolean>;

  constructor(options: DatabaseOptions) {
    this.#options = options;
    this.#pool = new pg.Pool({
      connectionString: options.url,
      application_name: options.service,
      max: 10,
      connectionTimeoutMillis: connectTimeout,
      // Both sides: a server that vanished without a word would otherwise be waited for until TCP gives up,
      // and a statement whose client vanished would go on holding its locks.
      query_timeout: statementTimeout,
      statement_timeout: statementTimeout,
      lock_timeout: lockTimeout,
      keepAlive: true,
      types: { getTypeParser },
    });
    // An idle connection that breaks: the pool has dropped it already.
    this.#pool.on('error', (err) => options.log.warn({ err }, 'an idle database connection broke'));
    this.opened = this.#open();
  }

  /** @throws {DatabaseUnavailable} */
  query: Query = async (text, values) => {
    this.#assertMigrated();
    return translate(this.#pool.query(text, values));
  };

  /**
   * Runs `work` in a transaction: committed when it resolves, rolled back when it throws.
   * @throws {DatabaseUnavailable}, or what `work` throws
   */
  async transaction<T>(work: (query: Query) => Promise<T>): Promise<T> {
    this.#assertMigrated();
    return this.#transaction(work);
  }

  /** The pool's connections, how many there may be, and the statements that wait for one. */
  get pool(): { total: number; max: number; idle: number; waiting: number } {
    const { totalCount: total, idleCount: idle, waitingCount: waiting, options } = this.#pool;
    return { total, max: options.max, idle, waiting };
  }

  /** Resolves when Postgres answers, can be written to and has the schema. @throws {DatabaseUnavailable} */
  async check(): Promise<void> {
    const { rows } = await this.query<{ setting: string }>(
      `SELECT current_setting('transaction_read_only') AS setting`,
    );
    if (rows[0]?.setting !== 'off') throw new DatabaseUnavailable(undefined, 'the database is read-only');
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await this.opened;
    await this.#pool.end();
  }

  #assertMigrated(): void {
    if (!this.#migrated) throw new DatabaseUnavailable();
  }

  async #open(): Promise<boolean> {
    const { log } = this.#options;
    let delay = retryDelay.first;
    let said = '';
    while (!this.#closing.signal.aborted) {
      try {
        await this.#transaction((query) => this.#migrate(query));
        this.#migrated = true;
        log.info('the database is ready');
        return true;
      } catch (error) {
        const reason = error instanceof DatabaseUnavailable ? error.cause : error;
        const message = (reason as Error).message || (reason as NodeJS.ErrnoException).code || String(reason);
        // Once a reason, not once an attempt.
        if (message !== said) log.warn(`the database is not ready, trying again until it is: ${message}`);
        said = message;
        await setTimeout(delay, undefined, { signal: this.#closing.signal }).catch(() => {});
        delay = Math.min(delay * 2, retryDelay.most);
      }
    }
    return false;
  }

  // Replicas start together: the lock lets one of them migrate, and the others find nothing left to do.
  async #migrate(query: Query): Promise<void> {
    const { migrations, seed } = this.#options;
    await query(`SELECT pg_advisory_xact_lock(hashtext('migrations'))`);
    await query(
      'CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())',
    );
    const { rows } = await query<{ name: string }>('SELECT name FROM migrations');
    const applied = new Set(rows.map((row) => row.name));
    for (const { name, sql } of migrations.filter((migration) => !applied.has(migration.name))) {
      await query(sql);
      await query('INSERT INTO migrations (name) VALUES ($1)', [name]);
    }
    await seed?.(query);
  }

  async #transaction<T>(work: (query: Query) => Promise<T>): Promise<T> {
    const client = await translate(this.#pool.connect());
    const query: Query = (text, values) => translate(client.query(text, values));
    let broken = true;
    client.on('error', ignore);
    try {
      await query('BEGIN');
      const result = await work(query);
      await query('COMMIT');
      broken = false;
      return result;
    } finally {
      client.off('error', ignore);
      // Closing the connection rolls back, and works also where ROLLBACK could not be sent.
      client.release(broken);
    }
  }
}

// The query under way reports a broken connection; without a listener the event would end the process.
function ignore(): void {}

function getTypeParser(...args: Parameters<typeof pg.types.getTypeParser>) {
  return args[0] === pg.types.builtins.INT8 ? parseInt8 : pg.types.getTypeParser(...args);
}

/** @throws {RangeError} where a double would hold another number */
function parseInt8(text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value)) return value;
  throw new RangeError(`${text} is no number that can be computed with`);
}

/** Whether a statement was given up because another one held what it needed (SQLSTATE 55P03). */
export function isLockTimeout(error: unknown): boolean {
  const cause = error instanceof DatabaseUnavailable ? error.cause : error;
  return cause instanceof pg.DatabaseError && cause.code === '55P03';
}

// SQLSTATE classes of a server that is away or not ready: connection, authorization, no such database,
// resources, operator intervention (a shutdown), a lock that another one holds for too long, and a server that takes
// reads only, as a standby does after a failover: https://www.postgresql.org/docs/18/errcodes-appendix.html
const unavailable = /^(08|28|3D|53|57|55P03|25006)/;

/** Turns what pg throws when Postgres is away into DatabaseUnavailable; a wrong statement stays what it is. */
async function translate<T>(result: Promise<T>): Promise<T> {
  try {
    return await result;
  } catch (error) {
    if (error instanceof pg.DatabaseError && !unavailable.test(error.code ?? '')) throw error;
    if (error instanceof RangeError) throw error;
    throw new DatabaseUnavailable(error);
  }
}
