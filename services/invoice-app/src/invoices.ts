import type { Database, Migration, Query } from '@payloop/kit/database.ts';
import { toMajorUnits } from '@payloop/kit/money.ts';

/** An invoice as it is stored. */
export interface Invoice {
  /** The number in its name: 1 for I1. */
  id: number;
  /** In minor units. */
  amount: number;
  currency: string;
  paid: boolean;
}

export const migrations: Migration[] = [
  {
    name: '1-invoices',
    sql: `
      CREATE TABLE customers (
        id integer PRIMARY KEY,
        currency text NOT NULL
      );
      CREATE TABLE invoices (
        id bigint PRIMARY KEY,
        customer_id integer NOT NULL REFERENCES customers,
        amount bigint NOT NULL,
        currency text NOT NULL,
        paid_at timestamptz
      );
      CREATE INDEX invoices_unpaid ON invoices (id) WHERE paid_at IS NULL`,
  },
];

const pageSize = 1_000;

/** The id of `I12`; undefined where the name is not an invoice's. */
export function parseInvoiceName(name: string): number | undefined {
  return /^I[1-9]\d{0,14}$/.test(name) ? Number(name.slice(1)) : undefined;
}

/** The invoice as clients of the original know it. */
export function toContract({ id, amount, currency, paid }: Invoice) {
  return { InvoiceId: `I${id}`, Value: toMajorUnits(amount, currency), Currency: currency, IsPaid: paid };
}

/**
 * Fills an empty database: two customers, and `count` invoices. The first three are the original's, the others
 * follow from their number alone.
 */
export async function seed(query: Query, count: number): Promise<void> {
  const { rows } = await query('SELECT 1 FROM customers LIMIT 1');
  if (rows.length > 0) return;
  await query(`INSERT INTO customers (id, currency) VALUES (1, 'EUR'), (2, 'DKK')`);
  await query(
    `INSERT INTO invoices (id, customer_id, amount, currency)
     SELECT id, customer_id, amount, currency
     FROM (VALUES (1, 1, 1215, 'EUR'), (2, 1, 1025, 'GBP'), (3, 1, 6613, 'DKK')) AS original (id, customer_id, amount, currency)
     WHERE id <= $1::bigint
     UNION ALL
     SELECT n, 1 + n % 2, 100 + n * 7919 % 99900, (ARRAY['EUR', 'GBP', 'DKK', 'USD', 'JPY'])[1 + n % 5]
     FROM generate_series(4, $1::bigint) AS n`,
    [count],
  );
}

/** Makes the data anew, as if the database had been empty. */
export async function resetInvoices(database: Database, count: number): Promise<void> {
  await database.transaction(async (query) => {
    await query('TRUNCATE invoices, customers');
    await seed(query, count);
  });
}

export interface InvoiceFilter {
  /** Only paid ones, or only unpaid ones. */
  paid?: boolean | undefined;
  /** Only those behind this id. */
  after?: number | undefined;
  /** At most so many. */
  limit?: number | undefined;
}

/**
 * Reads invoices in id order, a page at a time, so that any number of them fits in memory.
 * @throws {DatabaseUnavailable}
 */
export async function* listInvoices(
  database: Database,
  filter: InvoiceFilter = {},
): AsyncGenerator<Invoice[]> {
  let { after = 0, limit = Infinity } = filter;
  const where = { true: 'AND paid_at IS NOT NULL', false: 'AND paid_at IS NULL', undefined: '' }[
    `${filter.paid}`
  ];
  while (limit > 0) {
    const { rows } = await database.query<Invoice>(
      `SELECT id, amount, currency, paid_at IS NOT NULL AS paid
       FROM invoices WHERE id > $1 ${where} ORDER BY id LIMIT $2`,
      [after, Math.min(limit, pageSize)],
    );
    const last = rows.at(-1);
    if (last === undefined) return;
    yield rows;
    after = last.id;
    limit -= rows.length;
  }
}

/** Marks an invoice as paid; when this resolves, it is final. @throws {DatabaseUnavailable} */
export async function markPaid(database: Database, id: number): Promise<void> {
  await database.query('UPDATE invoices SET paid_at = now() WHERE id = $1 AND paid_at IS NULL', [id]);
}
