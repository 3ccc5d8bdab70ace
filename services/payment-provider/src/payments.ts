import type { Database, Migration } from '@payloop/kit/database.ts';
import type { Payment } from './payment.ts';

export type Outcome = 'charged' | 'declined';

export const migrations: Migration[] = [
  {
    name: '1-payments',
    // The contract takes values up to the largest float32: 39 digits before the point, and at most 4 behind it.
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
];

/** Stores a payment and its outcome; when this resolves, it is final. */
export async function recordPayment(database: Database, payment: Payment, outcome: Outcome): Promise<void> {
  await database.query(
    'INSERT INTO payments (payment_id, amount, currency, outcome) VALUES ($1, $2, $3, $4)',
    [payment.id, payment.amount, payment.currency, outcome],
  );
}

/** Forgets every payment. */
export async function deletePayments(database: Database): Promise<void> {
  await database.query('TRUNCATE payments');
}
