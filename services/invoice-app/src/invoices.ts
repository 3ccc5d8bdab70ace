import type { Database, Migration, Query } from '@payloop/chassis/database.ts';
import { toMajorUnits } from '@payloop/chassis/money.ts';
import { z } from 'zod';
import { readPages, type Range } from './pagination.ts';

/** An invoice as it is stored. */
export interface Invoice {
  /** The number in its name: 1 for I1. */
  id: number;
  /** In minor units. */
  amount: number;
  currency: string;
}

/** An invoice to pay, under the key of its open attempt. */
export interface Attempt extends Invoice {
  key: string;
}

/** An invoice as clients see it. */
export interface ListedInvoice extends Invoice {
  customerId: number;
  paid: boolean;
}

/** What an invoice is called. */
export const invoiceName = /^I[1-9]\d{0,14}$/;

/** The same as clients of the original know it. */
export const contractInvoice = () =>
  z
    .object({
      InvoiceId: z.string().regex(invoiceName),
      Value: z.number().meta({ description: 'In major units.' }),
      Currency: z.string(),
      IsPaid: z.boolean(),
    })
    .meta({ id: 'Invoice' });

/** Who invoices are for. */
export interface Customer {
  id: number;
  currency: string;
}

/** How many invoices are claimed at a time: as many as the provider takes in one request. */
export const batchSize = 1_000;

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
  {
    name: '2-attempts',
    sql: `
      -- The idempotency key of the attempt that is open: there before its first request, replaced by a decline.
      ALTER TABLE invoices ADD COLUMN attempt_key uuid NOT NULL DEFAULT uuidv7();

      ALTER TABLE invoices ADD CHECK (id > 0);

      -- Invoices are claimed by the batch: one row is written for a thousand of them. Free: no holder, or a
      -- lease that has run out. A lease that ran out, with or without a holder, left invoices open.
      CREATE TABLE batches (
        first_id bigint PRIMARY KEY,
        last_id bigint NOT NULL,
        holder text,
        leased_until timestamptz
      );
      CREATE INDEX batches_leased ON batches (leased_until) WHERE leased_until IS NOT NULL;
      -- However an invoice comes in, it is in a batch.
      CREATE FUNCTION add_batches() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          INSERT INTO batches (first_id, last_id)
          SELECT DISTINCT id - (id - 1) % ${batchSize}, id - (id - 1) % ${batchSize} + ${batchSize - 1} FROM added
          ON CONFLICT DO NOTHING;
          RETURN NULL;
        END
      $$;
      CREATE TRIGGER add_batches AFTER INSERT ON invoices REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION add_batches();
      INSERT INTO batches (first_id, last_id)
      SELECT DISTINCT id - (id - 1) % ${batchSize}, id - (id - 1) % ${batchSize} + ${batchSize - 1} FROM invoices;

      CREATE TABLE payment_events (
        id bigint GENERATED ALWAYS AS IDENTITY,
        invoice_id bigint NOT NULL,
        idempotency_key uuid NOT NULL,
        kind text NOT NULL CHECK (kind IN ('charged', 'declined')),
        amount bigint NOT NULL,
        currency text NOT NULL,
        happened_at timestamptz NOT NULL DEFAULT now()
      );
      CREATE FUNCTION keep_payment_events() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF TG_OP = 'TRUNCATE' AND current_setting('payloop.reset', true) = 'on' THEN
            RETURN NULL;
          END IF;
          RAISE EXCEPTION 'payment_events is only ever added to';
        END
      $$;
      CREATE TRIGGER keep_payment_events BEFORE UPDATE OR DELETE OR TRUNCATE ON payment_events
        FOR EACH STATEMENT EXECUTE FUNCTION keep_payment_events()`,
  },
  {
    name: '3-declines',
    sql: `
      -- Of the last attempt, where it was declined: written by the statement that ends it. payment_events has all.
      ALTER TABLE invoices ADD COLUMN declined_at timestamptz, ADD COLUMN decline_reason text;
      -- What was declined in a batch since then has ended; what was before is tried again.
      ALTER TABLE batches ADD COLUMN claimed_at timestamptz`,
  },
  {
    name: '4-refusals',
    sql: `
      -- Set when the provider refused the invoice as it is. The key stays: an earlier request with it may have charged.
      ALTER TABLE invoices ADD COLUMN refused_at timestamptz, ADD COLUMN refusal_reason text;
      CREATE INDEX invoices_refused ON invoices (id) WHERE refused_at IS NOT NULL;
      ALTER TABLE payment_events ADD COLUMN reason text,
        DROP CONSTRAINT payment_events_kind_check,
        ADD CONSTRAINT payment_events_kind_check CHECK (kind IN ('charged', 'declined', 'refused'));
      -- A refused invoice is asked for again once somebody has changed it.
      CREATE FUNCTION reopen_invoice() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          UPDATE invoices SET refused_at = NULL, refusal_reason = NULL WHERE id = NEW.id;
          RETURN NULL;
        END
      $$;
      -- After the update, as all triggers here: one that comes before makes Postgres lock each row that is paid.
      CREATE TRIGGER reopen_invoice AFTER UPDATE OF amount, currency ON invoices FOR EACH ROW
        WHEN (OLD.refused_at IS NOT NULL
          AND (OLD.amount, OLD.currency) IS DISTINCT FROM (NEW.amount, NEW.currency))
        EXECUTE FUNCTION reopen_invoice()`,
  },
  {
    name: '5-unsettled',
    sql: `
      -- For providers that ignore keys. Asked: set before the request, and from then on nobody else asks. Unknown: its
      -- holder has gone, or has no answer; it is listed for a person.
      ALTER TABLE invoices ADD COLUMN asked_at timestamptz, ADD COLUMN unknown_at timestamptz;
      CREATE INDEX invoices_asked ON invoices (id) WHERE asked_at IS NOT NULL;
      ALTER TABLE payment_events
        DROP CONSTRAINT payment_events_kind_check,
        ADD CONSTRAINT payment_events_kind_check CHECK (kind IN ('charged', 'declined', 'refused', 'unknown'));
      -- For that person: whether the provider charged it.
      CREATE FUNCTION settle_invoice(invoice bigint, was_charged boolean) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
          WITH settled AS (
            UPDATE invoices SET asked_at = NULL, unknown_at = NULL, paid_at = CASE WHEN was_charged THEN now() END
            WHERE id = invoice AND unknown_at IS NOT NULL AND paid_at IS NULL
            RETURNING id, attempt_key, amount, currency
          ), told AS (
            INSERT INTO payment_events (invoice_id, idempotency_key, kind, amount, currency, reason)
            SELECT id, attempt_key, 'charged', amount, currency, 'settled by ' || current_user FROM settled
            WHERE was_charged
          )
          SELECT id INTO STRICT invoice FROM settled;
        EXCEPTION WHEN no_data_found THEN
          RAISE EXCEPTION 'invoice % has no unknown outcome to settle', invoice;
        END
      $$`,
  },
  {
    name: '6-bounds',
    // Fifteen digits are what a double keeps for certain, with or without a point among them. A row that is there and
    // breaks one of these keeps this version from getting ready, and its log names the constraint: the version before
    // goes on, and somebody has to decide about the row.
    sql: `
      ALTER TABLE invoices
        ADD CONSTRAINT id_has_15_digits CHECK (id <= 999999999999999),
        ADD CONSTRAINT amount_has_15_digits CHECK (amount BETWEEN -999999999999999 AND 999999999999999),
        ADD CONSTRAINT currency_length CHECK (char_length(currency) BETWEEN 1 AND 32),
        ADD CONSTRAINT currency_upper_case CHECK (char_length(currency) <> 3 OR currency = upper(currency COLLATE "C"));
      ALTER TABLE customers
        ADD CONSTRAINT currency_length CHECK (char_length(currency) BETWEEN 1 AND 32),
        ADD CONSTRAINT currency_upper_case CHECK (char_length(currency) <> 3 OR currency = upper(currency COLLATE "C"))`,
  },
  {
    name: '7-final',
    sql: `
      CREATE FUNCTION keep_paid_invoices() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF TG_OP = 'TRUNCATE' AND current_setting('payloop.reset', true) = 'on' THEN
            RETURN NULL;
          END IF;
          RAISE EXCEPTION 'a paid invoice is final';
        END
      $$;
      CREATE TRIGGER keep_paid_from_updates AFTER UPDATE ON invoices FOR EACH ROW
        WHEN (OLD.paid_at IS NOT NULL AND OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION keep_paid_invoices();
      CREATE TRIGGER keep_paid_from_deletes BEFORE DELETE ON invoices FOR EACH ROW
        WHEN (OLD.paid_at IS NOT NULL) EXECUTE FUNCTION keep_paid_invoices();
      CREATE TRIGGER keep_paid_from_truncates BEFORE TRUNCATE ON invoices
        FOR EACH STATEMENT EXECUTE FUNCTION keep_paid_invoices();

      -- What may be charged at the moment must be what is charged. A refused invoice is not being asked for.
      CREATE FUNCTION keep_open_attempts() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
          lease timestamptz;
        BEGIN
          -- With a lock: nobody claims the batch until this change is there to be read.
          SELECT leased_until INTO lease FROM batches WHERE NEW.id BETWEEN first_id AND last_id FOR SHARE;
          IF lease IS NOT NULL OR OLD.asked_at IS NOT NULL THEN
            RAISE EXCEPTION 'invoice % may be charged at the moment, and cannot change until that is known', NEW.id;
          END IF;
          RETURN NULL;
        END
      $$;
      CREATE TRIGGER keep_open_attempts AFTER UPDATE OF amount, currency ON invoices FOR EACH ROW
        WHEN (OLD.refused_at IS NULL AND OLD.paid_at IS NULL
          AND (OLD.amount, OLD.currency) IS DISTINCT FROM (NEW.amount, NEW.currency))
        EXECUTE FUNCTION keep_open_attempts()`,
  },
  {
    name: '8-epoch',
    sql: `
      -- Its one row names the data since the last reset. Resetting: since when a reset is under way, whose outcome at
      -- the provider is unknown until it is finished or taken back.
      CREATE TABLE epoch (
        is_the_one boolean PRIMARY KEY DEFAULT true CHECK (is_the_one),
        id uuid NOT NULL DEFAULT uuidv7(),
        resetting_at timestamptz
      );
      INSERT INTO epoch DEFAULT VALUES`,
  },
];

/** The id of `I12`; undefined where the name is not an invoice's. */
export function parseInvoiceName(name: string): number | undefined {
  return invoiceName.test(name) ? Number(name.slice(1)) : undefined;
}

/** The invoice as clients of the original know it. */
export function toContract({
  id,
  amount,
  currency,
  paid,
}: ListedInvoice): z.infer<ReturnType<typeof contractInvoice>> {
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
  // In parts, as a statement's time is limited.
  const part = 100_000;
  for (let from = 1; from <= count; from += part) {
    await query(
      `INSERT INTO invoices (id, customer_id, amount, currency)
       SELECT n, coalesce(o.customer_id, 1 + n % 2), coalesce(o.amount, 100 + n * 7919 % 99900),
         coalesce(o.currency, (ARRAY['EUR', 'GBP', 'DKK', 'USD', 'JPY'])[1 + n % 5])
       FROM generate_series($1::bigint, $2::bigint) AS n
       LEFT JOIN (VALUES (1, 1, 1215, 'EUR'), (2, 1, 1025, 'GBP'), (3, 1, 6613, 'DKK'))
         AS o (id, customer_id, amount, currency) ON o.id = n`,
      [from, Math.min(from + part - 1, count)],
    );
  }
}

/** Makes the data anew, as if the database had been empty. @param fill fills it again */
export async function resetInvoices(query: Query, fill: (query: Query) => Promise<void>): Promise<void> {
  await query(`SET LOCAL payloop.reset = 'on'`);
  await query('TRUNCATE invoices, customers, batches, payment_events');
  await fill(query);
}

/** How many invoices are unpaid. */
export async function countUnpaid(database: Database): Promise<number> {
  const { rows } = await database.query<{ unpaid: number }>(
    'SELECT count(*) AS unpaid FROM invoices WHERE paid_at IS NULL',
  );
  return rows[0]?.unpaid ?? 0;
}

/** How many invoices the provider refused, and nobody has changed since. */
export async function countRefused(database: Database): Promise<number> {
  const { rows } = await database.query<{ refused: number }>(
    'SELECT count(*) AS refused FROM invoices WHERE refused_at IS NOT NULL AND paid_at IS NULL',
  );
  return rows[0]?.refused ?? 0;
}

/** How many invoices have an unknown outcome at a provider without keys, until somebody settles them. */
export async function countUnsettled(database: Database): Promise<number> {
  const { rows } = await database.query<{ unsettled: number }>(
    'SELECT count(*) AS unsettled FROM invoices WHERE asked_at IS NOT NULL AND paid_at IS NULL',
  );
  return rows[0]?.unsettled ?? 0;
}

/** How many invoices wait for a person: they are refused, or unsettled. */
export async function countStuck(database: Database): Promise<{ refused: number; unsettled: number }> {
  const { rows } = await database.query<{ refused: number; unsettled: number }>(
    `SELECT
       (SELECT count(*) FROM invoices WHERE refused_at IS NOT NULL AND paid_at IS NULL) AS refused,
       (SELECT count(*) FROM invoices WHERE asked_at IS NOT NULL AND paid_at IS NULL) AS unsettled`,
  );
  return rows[0]!;
}

/** Whether any invoice is unpaid. */
export async function hasUnpaid(database: Database): Promise<boolean> {
  const { rows } = await database.query('SELECT FROM invoices WHERE paid_at IS NULL LIMIT 1');
  return rows.length > 0;
}

const selectInvoices = `
  SELECT id, customer_id AS "customerId", amount, currency, paid_at IS NOT NULL AS paid FROM invoices`;

/** @throws {DatabaseUnavailable} */
export async function findInvoice(database: Database, id: number): Promise<ListedInvoice | undefined> {
  const { rows } = await database.query<ListedInvoice>(`${selectInvoices} WHERE id = $1`, [id]);
  return rows[0];
}

export interface InvoiceFilter extends Range {
  /** Only paid ones, or only unpaid ones. */
  paid?: boolean | undefined;
}

/** Reads invoices in id order, a page at a time. @throws {DatabaseUnavailable} */
export function listInvoices(
  database: Database,
  { paid, ...range }: InvoiceFilter = {},
): AsyncGenerator<ListedInvoice[]> {
  const where = { true: 'AND paid_at IS NOT NULL', false: 'AND paid_at IS NULL', undefined: '' }[`${paid}`];
  return readPages(range, async (after, limit) => {
    const { rows } = await database.query<ListedInvoice>(
      `${selectInvoices} WHERE id > $1 ${where} ORDER BY id LIMIT $2`,
      [after, limit],
    );
    return rows;
  });
}

/** Reads customers in id order, a page at a time. @throws {DatabaseUnavailable} */
export function listCustomers(database: Database): AsyncGenerator<Customer[]> {
  return readPages({}, async (after, limit) => {
    const { rows } = await database.query<Customer>(
      'SELECT id, currency FROM customers WHERE id > $1::bigint ORDER BY id LIMIT $2',
      [after, limit],
    );
    return rows;
  });
}

/** @throws {DatabaseUnavailable} */
export async function findCustomer(database: Database, id: number): Promise<Customer | undefined> {
  const { rows } = await database.query<Customer>(
    'SELECT id, currency FROM customers WHERE id = $1::bigint',
    [id],
  );
  return rows[0];
}
