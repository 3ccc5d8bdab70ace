import { setTimeout } from 'node:timers/promises';
import pg from 'pg';
import type { Log } from './log.ts';
import { HttpError } from './http-error.ts';

/** Postgres cannot be reached or is not ready. */
export class DatabaseUnavailable extends HttpError {
  override name = 'DatabaseUnavailable';

  constructor(cause?: unknown, message = 'database unavailable', retryAfter?: number) {
    super(503, message, retryAfter);
    this.cause = cause;
  }
}

/** Postgres is up, but this statement did not get a connection in time. */
export class DatabaseBusy extends DatabaseUnavailable {
  override name = 'DatabaseBusy';

  constructor(cause: unknown) {
    super(cause, 'no database connection is free, try again later', 1);
  }
}

/**
 * Runs one statement, in the pool or in a transaction.
 * @param name prepares the statement under this name: Postgres then parses it once for each connection, and may reuse
 * its plan. Only for statements whose best plan is the same for all values
 */
export type Query = <R extends pg.QueryResultRow>(
  text: string,
  values?: unknown[],
  name?: string,
) => Promise<pg.QueryResult<R>>;

/** A step of the schema. A released step never changes; a later step corrects it. */
export interface Migration {
  name: string;
  sql: string;
}

export interface DatabaseOptions {
  url: string;
  migrations: Migration[];
  /** Runs after missing migrations, in the same transaction. May run again: it must do nothing if the data is there. */
  seed?: (query: Query) => Promise<void>;
  log: Log;
  service: string;
  /** The maximum number of connections, in addition to the one reserved for `check`. */
  max?: number;
}

/** The default of `max`. With the connection of `check` a replica has ten, see k8s/local/postgres. */
const defaultMax = 9;
/** How long `check` may take to connect, and again to query, in milliseconds. A probe waits 2 s for both. */
const checkTimeout = 900;
/** How long a statement may run, in milliseconds. */
const statementTimeout = 10_000;
/** How long a statement waits for a connection, in milliseconds. */
const connectTimeout = 2_000;
/** How long a statement waits for a lock that another transaction holds, in milliseconds. */
const lockTimeout = 2_000;
/** The delay between attempts to reach Postgres at startup, in milliseconds. It doubles up to the maximum. */
const retryDelay = { first: 100, max: 2_000 };

/**
 * A service's database: a connection pool that survives outages of Postgres, and a schema that is migrated in the
 * background. During an outage the service is live but not ready, and it recovers by itself.
 */
export class Database {
  readonly #pool: pg.Pool;
  /** Reserved for `check`: readiness must not wait for other work to free a connection. */
  readonly #probe: pg.Pool;
  #check: Promise<void> | undefined;
  readonly #options: DatabaseOptions;
  readonly #closing = new AbortController();
  readonly #partitions: Database[] = [];
  /** Open connections of the pool, idle or in use. */
  #connected = 0;
  /** Shared with the partitions. */
  readonly #schema: { isUpToDate: boolean };
  /** Resolves to true when the schema is up to date, or to false if the database is closed before. */
  readonly opened: Promise<boolean>;

  /** @param parent the database that this one is a partition of, see `partition` */
  constructor(options: DatabaseOptions, parent?: Database) {
    this.#options = options;
    this.#schema = parent ? parent.#schema : { isUpToDate: false };
    this.#pool = createPool(options, options.max ?? defaultMax, connectTimeout, statementTimeout);
    this.#pool.on('connect', () => (this.#connected += 1)).on('remove', () => (this.#connected -= 1));
    this.#probe = parent ? parent.#probe : createPool(options, 1, checkTimeout, checkTimeout);
    this.opened = parent ? parent.opened : this.#open();
  }

  /**
   * Creates another pool of the same database, for work that must not wait behind other work. Closing this database
   * closes the partition too.
   * @param max the maximum number of connections of the partition
   */
  partition(max: number): Database {
    const partition = new Database({ ...this.#options, max }, this);
    this.#partitions.push(partition);
    return partition;
  }

  /** @throws {DatabaseUnavailable} */
  query: Query = async (text, values, name) => {
    this.#assertMigrated();
    return this.#translate(this.#pool.query(toConfig(text, values, name)));
  };

  /**
   * Runs `work` in a transaction: commits when it resolves, rolls back when it throws.
   * @throws {DatabaseUnavailable}, or the error of `work`
   */
  async transaction<T>(work: (query: Query) => Promise<T>): Promise<T> {
    this.#assertMigrated();
    return this.#transaction(work);
  }

  /** The connections of all pools, their maximum, and the statements that wait for one. */
  get pool(): { total: number; max: number; idle: number; waiting: number } {
    const pools = [this.#pool, this.#probe, ...this.#partitions.map((partition) => partition.#pool)];
    const sum = (of: (pool: pg.Pool) => number) => pools.reduce((total, pool) => total + of(pool), 0);
    return {
      total: sum(({ totalCount }) => totalCount),
      max: sum(({ options }) => options.max),
      idle: sum(({ idleCount }) => idleCount),
      waiting: sum(({ waitingCount }) => waitingCount),
    };
  }

  /**
   * Resolves when Postgres answers, is writable and has the schema. Uses a reserved connection; concurrent calls share
   * one statement.
   * @throws {DatabaseUnavailable}
   */
  async check(): Promise<void> {
    this.#assertMigrated();
    this.#check ??= this.#checkOnce().finally(() => (this.#check = undefined));
    await this.#check;
  }

  async #checkOnce(): Promise<void> {
    const { rows } = await this.#translate(
      this.#probe.query<{ setting: string }>(`SELECT current_setting('transaction_read_only') AS setting`),
    );
    if (rows[0]?.setting !== 'off') throw new DatabaseUnavailable(undefined, 'the database is read-only');
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await this.opened;
    const pools = [this.#pool, this.#probe, ...this.#partitions.map((partition) => partition.#pool)];
    await Promise.all(pools.map((pool) => pool.end()));
  }

  #assertMigrated(): void {
    if (!this.#schema.isUpToDate) throw new DatabaseUnavailable();
  }

  async #open(): Promise<boolean> {
    const { log } = this.#options;
    let delay = retryDelay.first;
    let logged = '';
    while (!this.#closing.signal.aborted) {
      try {
        if (!(await this.#isMigrated())) await this.#transaction((query) => this.#migrate(query));
        this.#schema.isUpToDate = true;
        log.info('the database is ready');
        return true;
      } catch (error) {
        const reason = error instanceof DatabaseUnavailable ? error.cause : error;
        const message = (reason as Error).message || (reason as NodeJS.ErrnoException).code || String(reason);
        // Logs a new reason, not each attempt.
        if (message !== logged) log.warn(`the database is not ready yet, retrying: ${message}`);
        logged = message;
        await setTimeout(delay, undefined, { signal: this.#closing.signal }).catch(() => {});
        delay = Math.min(delay * 2, retryDelay.max);
      }
    }
    return false;
  }

  /** Whether no migration is missing. That is nearly always so, and one statement is faster than a transaction. */
  async #isMigrated(): Promise<boolean> {
    try {
      const { rows } = await this.#translate(
        this.#pool.query<{ name: string }>('SELECT name FROM migrations'),
      );
      const applied = new Set(rows.map(({ name }) => name));
      return this.#options.migrations.every(({ name }) => applied.has(name));
    } catch (error) {
      if (error instanceof pg.DatabaseError && error.code === undefinedTable) return false;
      throw error;
    }
  }

  // Replicas start at the same time. The lock lets one of them migrate, and the others find the work done.
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
    const client = await this.#translate(this.#pool.connect());
    const query: Query = (text, values, name) => this.#translate(client.query(toConfig(text, values, name)));
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
      // On failure, closing the connection rolls back, even if ROLLBACK could not be sent.
      client.release(broken);
    }
  }

  /** Converts errors of pg to DatabaseUnavailable when Postgres is away. Other errors pass unchanged. */
  async #translate<T>(result: Promise<T>): Promise<T> {
    try {
      return await result;
    } catch (error) {
      if (this.#isBusy(error)) throw new DatabaseBusy(error);
      // A number outside the range of safe integers, see `parseInt8`. A retry would not help.
      if (error instanceof RangeError) throw error;
      if (error instanceof pg.DatabaseError && !unavailable.test(error.code ?? '')) throw error;
      throw new DatabaseUnavailable(error);
    }
  }

  /**
   * Whether every connection was in use, or Postgres has reached its connection limit (53300). While the pool is still
   * opening a connection, Postgres may be away instead.
   */
  #isBusy(error: unknown): boolean {
    if (error instanceof pg.DatabaseError) return error.code === '53300';
    return (error as Error).message === noFreeConnection && this.#connected >= this.#pool.options.max;
  }
}

function toConfig(text: string, values?: unknown[], name?: string): pg.QueryConfig {
  return { text, ...(values && { values }), ...(name !== undefined && { name }) };
}

function createPool({ url, service, log }: DatabaseOptions, max: number, connect: number, statement: number) {
  const pool = new pg.Pool({
    connectionString: url,
    application_name: service,
    max,
    connectionTimeoutMillis: connect,
    // Both sides have a timeout. The client's covers a vanished server: TCP would take far longer to give up. The
    // server's covers a vanished client: its statement would keep its locks.
    query_timeout: statement,
    statement_timeout: statement,
    lock_timeout: lockTimeout,
    keepAlive: true,
    types: { getTypeParser },
  });
  // The pool has already removed the broken connection.
  pool.on('error', (err) => log.warn({ err }, 'an idle database connection broke'));
  return pool;
}

/** The error message of pg-pool when no connection becomes free in time. */
const noFreeConnection = 'timeout exceeded when trying to connect';

// The query in flight reports a broken connection. An 'error' event with no listener would crash the process.
function ignore(): void {}

function getTypeParser(...args: Parameters<typeof pg.types.getTypeParser>) {
  return args[0] === pg.types.builtins.INT8 ? parseInt8 : pg.types.getTypeParser(...args);
}

/** @throws {RangeError} outside the range of safe integers */
function parseInt8(text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value)) return value;
  throw new RangeError(`${text} is outside the range of safe integers`);
}

/** The SQLSTATE of a table that does not exist. */
const undefinedTable = '42P01';

/** Whether a statement failed because it waited too long for a lock (SQLSTATE 55P03). */
export function isLockTimeout(error: unknown): boolean {
  const cause = error instanceof DatabaseUnavailable ? error.cause : error;
  return cause instanceof pg.DatabaseError && cause.code === '55P03';
}

// SQLSTATE classes and codes of a server that is away or not ready, in the order of the pattern: connection,
// authorization, missing database, resources, operator intervention (a shutdown), a database that accepts no
// connections, lock timeout, and read-only server, as a standby is after a failover.
// Source: https://www.postgresql.org/docs/18/errcodes-appendix.html
const unavailable = /^(08|28|3D|53|57|55000|55P03|25006)/;
