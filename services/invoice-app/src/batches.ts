import type { Database } from '@payloop/chassis/database.ts';
import type { Attempt } from './invoices.ts';
import type { AttemptResult } from './provider.ts';

/** A range of invoice ids that is claimed as a unit. */
export interface Batch {
  first: number;
  last: number;
  /** Identifies this claim among all claims, also those of the same process. */
  holder: string;
  /** Whether the previous holder never released it: it crashed, or was too slow. */
  abandoned: boolean;
  /** The epoch: identifies the data since the last reset. Each request to the provider carries it. */
  epoch: string;
  /** Whether the last holder may have left unknown outcomes: it released the batch for recovery, or not at all. */
  leftOpen: boolean;
}

/** The term of a lease from its claim or renewal, in seconds. */
export const leaseSeconds = 15;

/**
 * Tests that a lease has not expired. A lease that ends too far in the future dates from before Postgres' clock was
 * set back, and counts as expired. The limit is twice the term, as concurrent statements begin at different times.
 */
export const isLive = `leased_until BETWEEN now() AND now() + interval '${2 * leaseSeconds} s'`;

/**
 * Renewals and releases do not wait for the disk: if Postgres crashes and loses one, the earlier lease expires and
 * recovery checks the batch. A claim does wait. If it were lost, recovery would miss that invoices may have been
 * charged.
 */
const unsynced = `WITH unsynced AS (SELECT set_config('synchronous_commit', 'off', true))`;

/**
 * Tests that an invoice may be paid now. A refused invoice waits until somebody changes it. An invoice sent to a
 * provider without keys waits until its outcome is stored or somebody settles it.
 */
const payable = 'paid_at IS NULL AND refused_at IS NULL AND asked_at IS NULL';

/** Finds the batches with payable invoices. Returns the first id of each. */
export async function findPayable(database: Database): Promise<number[]> {
  const { rows } = await database.query<{ first: number }>(
    `SELECT first_id AS first FROM batches
     WHERE EXISTS (SELECT FROM invoices WHERE ${payable} AND id BETWEEN first_id AND last_id)
     ORDER BY first_id`,
  );
  return rows.map(({ first }) => first);
}

/** Finds the batches with an expired lease. Returns the first id of each. */
export async function findExpired(database: Database): Promise<number[]> {
  const { rows } = await database.query<{ first: number }>(
    `SELECT first_id AS first FROM batches WHERE leased_until IS NOT NULL AND NOT (${isLive}) ORDER BY first_id`,
  );
  return rows.map(({ first }) => first);
}

/** Claims one of these batches for `holder`; undefined if none is free. */
export async function claim(database: Database, holder: string, among: number[]): Promise<Batch | undefined> {
  const { rows } = await database.query<Batch>(
    `UPDATE batches SET holder = $1, claimed_at = now(), leased_until = now() + make_interval(secs => $2)
     WHERE first_id = (
       SELECT first_id FROM batches
       WHERE first_id = ANY ($3::bigint[]) AND (holder IS NULL OR NOT (${isLive}))
         AND NOT EXISTS (SELECT FROM epoch WHERE resetting_at IS NOT NULL)
       ORDER BY first_id LIMIT 1 FOR UPDATE SKIP LOCKED
     )
     RETURNING first_id AS first, last_id AS last, new.holder, old.holder IS NOT NULL AS abandoned,
       old.leased_until IS NOT NULL AS "leftOpen", (SELECT id FROM epoch) AS epoch`,
    [holder, leaseSeconds, among],
  );
  return rows[0];
}

/** Renews the lease. Returns false if it expired and another claim holds the batch. */
export async function renew(database: Database, batch: Batch): Promise<boolean> {
  const { rowCount } = await database.query(
    `${unsynced}
     UPDATE batches SET leased_until = now() + make_interval(secs => $2) FROM unsynced
     WHERE first_id = $3 AND holder = $1`,
    [batch.holder, leaseSeconds, batch.first],
  );
  return rowCount === 1;
}

/**
 * Releases the batch, so that any process may claim it.
 * @param needsRecovery whether invoices may have an unknown outcome; recovery then retries them after one lease term
 */
export async function release(database: Database, batch: Batch, needsRecovery: boolean): Promise<void> {
  await database.query(
    `${unsynced}
     UPDATE batches SET holder = NULL, leased_until = CASE WHEN $2 THEN now() + make_interval(secs => $3) END
     FROM unsynced WHERE first_id = $4 AND holder = $1`,
    [batch.holder, needsRecovery, leaseSeconds, batch.first],
  );
}

/** Reads the attempts of the payable invoices of a batch. */
export async function readAttempts(database: Database, { first, last }: Batch): Promise<Attempt[]> {
  const { rows } = await database.query<Attempt>(
    `SELECT id, amount, currency, attempt_key AS key FROM invoices
     WHERE ${payable} AND id BETWEEN $1 AND $2 ORDER BY id`,
    [first, last],
  );
  return rows;
}

/** Returns the seconds since the oldest lease, held or not, was granted or renewed; 0 if there is none. */
export async function readOldestLease(database: Database): Promise<number> {
  const { rows } = await database.query<{ age: number }>(
    `SELECT greatest(coalesce($1 + extract(epoch FROM now() - min(leased_until)), 0), 0)::float AS age FROM batches
     WHERE leased_until IS NOT NULL`,
    [leaseSeconds],
  );
  return rows[0]?.age ?? 0;
}

/** Counts the payable invoices of these batches. */
export async function countPayable(database: Database, among: number[]): Promise<number> {
  const { rows } = await database.query<{ unpaid: number }>(
    `SELECT count(*) AS unpaid FROM batches JOIN invoices ON id BETWEEN first_id AND last_id
     WHERE first_id = ANY ($1::bigint[]) AND ${payable}`,
    [among],
  );
  return rows[0]?.unpaid ?? 0;
}

/**
 * Stores charges and declines, with invoice and history in one transaction. Only the open attempt of an unpaid invoice
 * can end, so a response that arrives twice, or at two replicas, counts once.
 * @param attempts in the order of their ids
 * @param results of the attempts, in the same order
 */
export async function record(
  database: Database,
  attempts: Attempt[],
  results: AttemptResult[],
): Promise<void> {
  const definite = attempts
    .map(({ id, key }, index) => ({ id, key, ...results[index] }))
    // An allowlist, as no other outcome may ever end an attempt.
    .filter(({ outcome }) => outcome === 'charged' || outcome === 'declined');
  if (definite.length === 0) return;
  await database.query(
    // A reason that is not null, even an empty one, marks a decline. The id range keeps the planner from scanning the
    // whole table, which it considers cheaper than the look-ups.
    `WITH answers AS (
       SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::text[]) AS answer (id, key, reason)
     ), ended AS (
       UPDATE invoices SET
         paid_at = CASE WHEN reason IS NULL THEN now() END,
         declined_at = CASE WHEN reason IS NOT NULL THEN now() END,
         decline_reason = nullif(reason, ''),
         asked_at = NULL, unknown_at = NULL,
         attempt_key = CASE WHEN reason IS NULL THEN key ELSE uuidv7() END
       FROM answers
       WHERE invoices.id = answers.id AND attempt_key = key AND paid_at IS NULL
         AND invoices.id BETWEEN $4 AND $5
       RETURNING invoices.id, key, CASE WHEN reason IS NULL THEN 'charged' ELSE 'declined' END, amount, currency,
         decline_reason
     )
     INSERT INTO payment_events (invoice_id, idempotency_key, kind, amount, currency, reason) SELECT * FROM ended`,
    [
      definite.map(({ id }) => id),
      definite.map(({ key }) => key),
      definite.map(({ outcome, reason = '' }) => (outcome === 'declined' ? reason : null)),
      definite[0]?.id,
      definite.at(-1)?.id,
    ],
  );
}

/** Stores refusals, with invoice and history in one transaction. The attempt stays open under its key. */
export async function refuse(
  database: Database,
  attempts: Attempt[],
  results: AttemptResult[],
): Promise<void> {
  const refused = attempts
    .map(({ id, key }, index) => ({ id, key, ...results[index] }))
    .filter(({ outcome }) => outcome === 'refused');
  await database.query(
    `WITH answers AS (
       SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::text[]) AS answer (id, key, reason)
     ), refused AS (
       UPDATE invoices SET refused_at = now(), refusal_reason = nullif(reason, ''), asked_at = NULL, unknown_at = NULL
       FROM answers
       WHERE invoices.id = answers.id AND attempt_key = key AND paid_at IS NULL AND refused_at IS NULL
       RETURNING invoices.id, key, 'refused', amount, currency, refusal_reason
     )
     INSERT INTO payment_events (invoice_id, idempotency_key, kind, amount, currency, reason) SELECT * FROM refused`,
    [refused.map(({ id }) => id), refused.map(({ key }) => key), refused.map(({ reason }) => reason ?? '')],
  );
}

/**
 * Marks attempts before they are sent to a provider that ignores keys, so that no other process ever sends them too.
 * Also renews the lease.
 * @returns the attempts to send, which no other process has marked or ended; undefined if another claim holds the batch
 */
export async function mark(
  database: Database,
  batch: Batch,
  attempts: Attempt[],
): Promise<Attempt[] | undefined> {
  const { rows } = await database.query<{ held: boolean; marked: string[] }>(
    `WITH held AS (
       UPDATE batches SET leased_until = now() + make_interval(secs => $5) WHERE first_id = $3 AND holder = $4
       RETURNING first_id
     ), marked AS (
       UPDATE invoices SET asked_at = now() FROM held, unnest($1::bigint[], $2::uuid[]) AS attempt (id, key)
       WHERE invoices.id = attempt.id AND attempt_key = key AND ${payable}
       RETURNING key
     )
     SELECT EXISTS (SELECT FROM held) AS held, ARRAY(SELECT key::text FROM marked) AS marked`,
    [attempts.map(({ id }) => id), attempts.map(({ key }) => key), batch.first, batch.holder, leaseSeconds],
  );
  const marked = new Set(rows[0]?.marked);
  return rows[0]?.held ? attempts.filter(({ key }) => marked.has(key)) : undefined;
}

/** Removes the marks of attempts that cannot have charged anything, so that they may be retried. */
export async function unmark(database: Database, attempts: Attempt[]): Promise<void> {
  await database.query(
    `UPDATE invoices SET asked_at = NULL, unknown_at = NULL
     FROM unnest($1::bigint[], $2::uuid[]) AS attempt (id, key)
     WHERE invoices.id = attempt.id AND attempt_key = key AND paid_at IS NULL`,
    [attempts.map(({ id }) => id), attempts.map(({ key }) => key)],
  );
}

/**
 * Reports invoices as unknown for manual review, in the history and on the page. They were sent to a provider without
 * keys and have no outcome in the database, so somebody has to look up each of them at the provider.
 */
export async function listUnknown(database: Database, { first, last }: Batch): Promise<void> {
  await database.query(
    `WITH listed AS (
       UPDATE invoices SET unknown_at = now()
       WHERE asked_at IS NOT NULL AND unknown_at IS NULL AND paid_at IS NULL AND id BETWEEN $1 AND $2
       RETURNING id, attempt_key, 'unknown', amount, currency
     )
     INSERT INTO payment_events (invoice_id, idempotency_key, kind, amount, currency) SELECT * FROM listed`,
    [first, last],
  );
}
