import { setTimeout } from 'node:timers/promises';
import pg from 'pg';
import type { Log } from './log.ts';
import { HttpError } from './http-error.ts';

/** Postgres cannot be reached, or is not ready yet. */
export class DatabaseUnavailable extends HttpError {
  override name = 'DatabaseUnavailable';

  constructor(cause?: unknown, message = 'database unavailable', retryAfter?: number) {
    super(503, message, retryAfter);
    this.cause = cause;
  }
}

/** Postgres answers others, but had no connection for this statement in time. */
export class DatabaseBusy extends DatabaseUnavailable {
  override name = 'DatabaseBusy';

  constructor(cause: unknown) {
    super(cause, 'no database connection is free, try again later', 1);
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
  /** The most connections, beside the one that `check` has for itself. */
  max?: number;
}

/** The most connections of a database that says nothing else: with that of `check` ten, see k8s/local/postgres. */
const mostConnections = 9;
/** How long `check` may take to connect, and then for an answer, in milliseconds: a probe waits 2 s. */
const checkTimeout = 900;
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
  /** For `check` alone: readiness must not wait until other work leaves a connection free. */
  readonly #probe: pg.Pool;
  #check: Promise<void> | undefined;
  readonly #options: DatabaseOptions;
  readonly #closing = new AbortController();
  readonly #parts: Database[] = [];
  /** Connections that were made and not closed. */
  #connected = 0;
  /** Shared with the parts. */
  readonly #schema: { isUpToDate: boolean };
  /** Settles when the schema is up to date (true) or the database was closed before (false). */
  readonly opened: Promise<boolean>;

  /** @param whole the database that this is a part of; `partition` makes parts */
  constructor(options: DatabaseOptions, whole?: Database) {
    this.#options = options;
    this.#schema = whole ? whole.#schema : { isUpToDate: false };
    this.#pool = createPool(options, options.max ?? mostConnections, connectTimeout, statementTimeout);
    this.#pool.on('connect', () => (this.#connected += 1)).on('remove', () => (this.#connected -= 1));
    this.#probe = whole ? whole.#probe : createPool(options, 1, checkTimeout, checkTimeout);
    this.opened = whole ? whole.opened : this.#open();
  }

  /**
   * Another pool of the same database, for work that must not wait behind other work. It closes with the whole.
   * @param max its most connections
   */
  partition(max: number): Database {
    const part = new Database({ ...this.#options, max }, this);
    this.#parts.push(part);
    return part;
  }

  /** @throws {DatabaseUnavailable} */
  query: Query = async (text, values) => {
    this.#assertMigrated();
    return this.#translate(this.#pool.query(text, values));
  };

  /**
   * Runs `work` in a transaction: committed when it resolves, rolled back when it throws.
   * @throws {DatabaseUnavailable}, or what `work` throws
   */
  async transaction<T>(work: (query: Query) => Promise<T>): Promise<T> {
    this.#assertMigrated();
    return this.#transaction(work);
  }

  /** The connections of all pools, how many there may be, and the statements that wait for one. */
  get pool(): { total: number; max: number; idle: number; waiting: number } {
    const pools = [this.#pool, this.#probe, ...this.#parts.map((part) => part.#pool)];
    const sum = (of: (pool: pg.Pool) => number) => pools.reduce((total, pool) => total + of(pool), 0);
    return {
      total: sum(({ totalCount }) => totalCount),
      max: sum(({ options }) => options.max),
      idle: sum(({ idleCount }) => idleCount),
      waiting: sum(({ waitingCount }) => waitingCount),
    };
  }

  /**
   * Resolves when Postgres answers, can be written to and has the schema: over a connection of its own, and one
   * statement for all who ask at the same time.
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
    const pools = [this.#pool, this.#probe, ...this.#parts.map((part) => part.#pool)];
    await Promise.all(pools.map((pool) => pool.end()));
  }

  #assertMigrated(): void {
    if (!this.#schema.isUpToDate) throw new DatabaseUnavailable();
  }

  async #open(): Promise<boolean> {
    const { log } = this.#options;
    let delay = retryDelay.first;
    let said = '';
    while (!this.#closing.signal.aborted) {
      try {
        await this.#transaction((query) => this.#migrate(query));
        this.#schema.isUpToDate = true;
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
    const client = await this.#translate(this.#pool.connect());
    const query: Query = (text, values) => this.#translate(client.query(text, values));
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

  /** Turns what pg throws when Postgres is away into DatabaseUnavailable; a wrong statement stays what it is. */
  async #translate<T>(result: Promise<T>): Promise<T> {
    try {
      return await result;
    } catch (error) {
      if (this.#isBusy(error)) throw new DatabaseBusy(error);
      // A number that JavaScript cannot hold, which no other try will change.
      if (error instanceof RangeError) throw error;
      if (error instanceof pg.DatabaseError && !unavailable.test(error.code ?? '')) throw error;
      throw new DatabaseUnavailable(error);
    }
  }

  /**
   * Whether every connection was in use, or Postgres has no more to give (53300). While one of the pool's is still
   * being made it may be that Postgres is away.
   */
  #isBusy(error: unknown): boolean {
    if (error instanceof pg.DatabaseError) return error.code === '53300';
    return (error as Error).message === noFreeConnection && this.#connected >= this.#pool.options.max;
  }
}

function createPool({ url, service, log }: DatabaseOptions, max: number, connect: number, statement: number) {
  const pool = new pg.Pool({
    connectionString: url,
    application_name: service,
    max,
    connectionTimeoutMillis: connect,
    // Both sides: a server that vanished without a word would otherwise be waited for until TCP gives up,
    // and a statement whose client vanished would go on holding its locks.
    query_timeout: statement,
    statement_timeout: statement,
    lock_timeout: lockTimeout,
    keepAlive: true,
    types: { getTypeParser },
  });
  // An idle connection that breaks: the pool has dropped it already.
  pool.on('error', (err) => log.warn({ err }, 'an idle database connection broke'));
  return pool;
}

/** What pg-pool throws when none of its connections became free in time. */
const noFreeConnection = 'timeout exceeded when trying to connect';

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
