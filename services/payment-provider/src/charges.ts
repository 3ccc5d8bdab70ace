import type { Migration, Query } from '@payloop/chassis/database.ts';

export type Outcome = 'charged' | 'declined';

export const migrations: Migration[] = [
  {
    name: '1-payments',
    // The contract allows values up to the largest float32: 39 digits before the point, and at most 4 after it.
    sql: `
      CREATE TABLE payments (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        payment_id text NOT NULL,
        amount numeric(43, 0) NOT NULL,
        currency text NOT NULL,
        outcome text NOT NULL CHECK (outcome IN ('charged', 'declined')),
        created_at timestamptz NOT NULL DEFAULT now()
      )`,
  },
  {
    name: '2-idempotency-key',
    // Enforces that no key is ever charged twice. Payments without a key have NULL, which is never a duplicate.
    sql: `
      ALTER TABLE payments ADD COLUMN idempotency_key text COLLATE "C";
      CREATE UNIQUE INDEX payments_idempotency_key ON payments (idempotency_key)`,
  },
  {
    name: '3-lengths',
    // NOT VALID, so for new payments only: existing ones were charged as they are, and never change.
    sql: `
      ALTER TABLE payments
        ADD CONSTRAINT payment_id_length CHECK (char_length(payment_id) BETWEEN 1 AND 255) NOT VALID,
        ADD CONSTRAINT key_length CHECK (char_length(idempotency_key) BETWEEN 1 AND 255) NOT VALID,
        ADD CONSTRAINT currency_length CHECK (char_length(currency) BETWEEN 1 AND 32) NOT VALID,
        ADD CONSTRAINT currency_upper_case CHECK (char_length(currency) <> 3 OR currency = upper(currency COLLATE "C")) NOT VALID`,
  },
  {
    name: '4-epochs',
    // The epochs of client data that was reset. Later requests for them charge nothing.
    sql: 'CREATE TABLE retired_epochs (epoch uuid PRIMARY KEY, retired_at timestamptz NOT NULL DEFAULT now())',
  },
];

/** A charge that a client requests, with the outcome to store if its key is new. */
export interface Charge {
  key: string | undefined;
  paymentId: string;
  /** In minor units. */
  amount: bigint;
  currency: string;
  outcome: Outcome;
  /** The epoch of the client's data, if the client sends one. */
  epoch: string | undefined;
}

/** A charge as it is stored. */
export interface Stored {
  key: string;
  paymentId: string;
  amount: string;
  currency: string;
  outcome: Outcome;
}

/**
 * Stores the charges that have a new key or none.
 * @param charges charges of the same epoch
 * @returns the keys that were stored before; undefined if the epoch is retired, and then nothing is stored
 */
export async function insertNew(query: Query, charges: Charge[]): Promise<string[] | undefined> {
  // In key order, so that two replicas that store the same keys cannot deadlock. The inserted keys come back only if
  // another key was stored before. The plan is the same for one charge and for a thousand, so the statement can be
  // prepared.
  const { rows } = await query<{ inserted: (string | null)[] | null; isRetired: boolean }>(
    `WITH inserted AS (
       INSERT INTO payments (idempotency_key, payment_id, amount, currency, outcome)
       SELECT * FROM unnest($1::text[], $2::text[], $3::numeric[], $4::text[], $5::text[])
         AS charge (key, payment_id, amount, currency, outcome)
       WHERE NOT EXISTS (SELECT FROM retired_epochs WHERE epoch = $6)
       ORDER BY key COLLATE "C"
       ON CONFLICT (idempotency_key) DO NOTHING
       RETURNING idempotency_key
     )
     SELECT CASE WHEN count(*) < cardinality($1) THEN coalesce(array_agg(idempotency_key), '{}') END AS inserted,
       EXISTS (SELECT FROM retired_epochs WHERE epoch = $6) AS "isRetired"
     FROM inserted`,
    [
      charges.map(({ key }) => key),
      charges.map(({ paymentId }) => paymentId),
      charges.map(({ amount }) => amount),
      charges.map(({ currency }) => currency),
      charges.map(({ outcome }) => outcome),
      charges[0]?.epoch,
    ],
    'insert new charges',
  );
  const { inserted, isRetired } = rows[0]!;
  if (isRetired) return undefined;
  if (inserted === null) return [];
  const isInserted = new Set(inserted);
  return charges.flatMap(({ key }) => (key === undefined || isInserted.has(key) ? [] : key));
}

/** Finds the stored charges of these keys. */
export async function findByKey(query: Query, keys: string[]): Promise<Map<string, Stored>> {
  const { rows } = await query<Stored>(
    `SELECT idempotency_key AS key, payment_id AS "paymentId", amount, currency, outcome
     FROM payments WHERE idempotency_key = ANY ($1::text[])`,
    [keys],
  );
  return new Map(rows.map((row) => [row.key, row]));
}

/** Blocks the storing of charges until the transaction ends. */
export async function lockPayments(query: Query): Promise<void> {
  await query('LOCK TABLE payments IN ACCESS EXCLUSIVE MODE');
}

/** Retires an epoch, so that later requests for it charge nothing. Returns false if it was retired before. */
export async function retireEpoch(query: Query, epoch: string): Promise<boolean> {
  const { rowCount } = await query('INSERT INTO retired_epochs (epoch) VALUES ($1) ON CONFLICT DO NOTHING', [
    epoch,
  ]);
  return rowCount === 1;
}

/** Forgets every payment. */
export async function deletePayments(query: Query): Promise<void> {
  await query('TRUNCATE payments');
}
