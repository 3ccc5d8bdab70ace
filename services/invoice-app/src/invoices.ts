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

/** The name of an invoice. */
export const invoiceName = /^I[1-9]\d{0,14}$/;

/** An invoice in the format of the original service, see docs/differences.md. */
export const contractInvoice = () =>
  z
    .object({
      InvoiceId: z.string().regex(invoiceName),
      Value: z.number().meta({ description: 'In major units.' }),
      Currency: z.string(),
      IsPaid: z.boolean(),
    })
    .meta({ id: 'Invoice' });

/** A customer who receives invoices. */
export interface Customer {
  id: number;
  currency: string;
}

/** The number of ids in a batch: the maximum number of payments that the provider takes in one request. */
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
      -- The idempotency key of the open attempt. It is stored before the first request, and a decline replaces it.
      ALTER TABLE invoices ADD COLUMN attempt_key uuid NOT NULL DEFAULT uuidv7();

      ALTER TABLE invoices ADD CHECK (id > 0);

      -- Invoices are claimed in batches, so one row is written per thousand invoices. A batch is free if it has no
      -- holder or its lease has expired. An expired lease, with or without a holder, left invoices open.
      CREATE TABLE batches (
        first_id bigint PRIMARY KEY,
        last_id bigint NOT NULL,
        holder text,
        leased_until timestamptz
      );
      CREATE INDEX batches_leased ON batches (leased_until) WHERE leased_until IS NOT NULL;
      -- A trigger, so that every invoice is in a batch however it is inserted.
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
      -- The decline of the last attempt, written by the statement that ends it. payment_events keeps every decline.
      ALTER TABLE invoices ADD COLUMN declined_at timestamptz, ADD COLUMN decline_reason text;
      -- A decline after claimed_at belongs to the current claim. An earlier one is retried.
      ALTER TABLE batches ADD COLUMN claimed_at timestamptz`,
  },
  {
    name: '4-refusals',
    sql: `
      -- Set when the provider refuses the invoice as it is. The key stays, as an earlier request with it may have
      -- charged.
      ALTER TABLE invoices ADD COLUMN refused_at timestamptz, ADD COLUMN refusal_reason text;
      CREATE INDEX invoices_refused ON invoices (id) WHERE refused_at IS NOT NULL;
      ALTER TABLE payment_events ADD COLUMN reason text,
        DROP CONSTRAINT payment_events_kind_check,
        ADD CONSTRAINT payment_events_kind_check CHECK (kind IN ('charged', 'declined', 'refused'));
      -- A refused invoice becomes payable again once somebody changes it.
      CREATE FUNCTION reopen_invoice() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          UPDATE invoices SET refused_at = NULL, refusal_reason = NULL WHERE id = NEW.id;
          RETURN NULL;
        END
      $$;
      -- AFTER, like every row trigger on updates here: a BEFORE trigger makes Postgres lock each row that is paid.
      CREATE TRIGGER reopen_invoice AFTER UPDATE OF amount, currency ON invoices FOR EACH ROW
        WHEN (OLD.refused_at IS NOT NULL
          AND (OLD.amount, OLD.currency) IS DISTINCT FROM (NEW.amount, NEW.currency))
        EXECUTE FUNCTION reopen_invoice()`,
  },
  {
    name: '5-unsettled',
    sql: `
      -- For providers that ignore keys. asked_at is set before the request, and no other process sends one afterwards.
      -- unknown_at is set when the holder crashed or got no answer: the invoice is reported for manual review.
      ALTER TABLE invoices ADD COLUMN asked_at timestamptz, ADD COLUMN unknown_at timestamptz;
      CREATE INDEX invoices_asked ON invoices (id) WHERE asked_at IS NOT NULL;
      ALTER TABLE payment_events
        DROP CONSTRAINT payment_events_kind_check,
        ADD CONSTRAINT payment_events_kind_check CHECK (kind IN ('charged', 'declined', 'refused', 'unknown'));
      -- Called by the reviewer, with whether the provider charged the invoice.
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
    // A double keeps any fifteen digits exactly, with or without a decimal point. If an existing row breaks one of
    // these constraints, this version does not become ready and its log names the constraint. The previous version
    // keeps running until somebody decides about the row.
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

      -- An invoice with a request that may be in flight must not change: the charge has to match it. A refused
      -- invoice has none.
      CREATE FUNCTION keep_open_attempts() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
          lease timestamptz;
        BEGIN
          -- FOR SHARE blocks claims of the batch until this change is committed.
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
      -- Its only row identifies the data since the last reset. resetting_at is the start of an unfinished reset: its
      -- outcome at the provider is unknown until the reset is finished or cancelled.
      CREATE TABLE epoch (
        is_the_one boolean PRIMARY KEY DEFAULT true CHECK (is_the_one),
        id uuid NOT NULL DEFAULT uuidv7(),
        resetting_at timestamptz
      );
      INSERT INTO epoch DEFAULT VALUES`,
  },
];

/** Parses the name of an invoice, such as `I12`, into its id; undefined if it is not one. */
export function parseInvoiceName(name: string): number | undefined {
  return invoiceName.test(name) ? Number(name.slice(1)) : undefined;
}

/** Converts an invoice to the format of the original service. */
export function toContract({
  id,
  amount,
  currency,
  paid,
}: ListedInvoice): z.infer<ReturnType<typeof contractInvoice>> {
  return { InvoiceId: `I${id}`, Value: toMajorUnits(amount, currency), Currency: currency, IsPaid: paid };
}

/**
 * Fills an empty database with two customers and `count` invoices. The first three are those of the original service.
 * The others are derived from their ids.
 */
export async function seed(query: Query, count: number): Promise<void> {
  const { rows } = await query('SELECT 1 FROM customers LIMIT 1');
  if (rows.length > 0) return;
  await query(`INSERT INTO customers (id, currency) VALUES (1, 'EUR'), (2, 'DKK')`);
  // In parts, as each statement has a timeout.
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

/** Deletes all data and fills the database as if it had been empty. @param fill fills it */
export async function resetInvoices(query: Query, fill: (query: Query) => Promise<void>): Promise<void> {
  await query(`SET LOCAL payloop.reset = 'on'`);
  await query('TRUNCATE invoices, customers, batches, payment_events');
  await fill(query);
}

/** Counts the unpaid invoices. */
export async function countUnpaid(database: Database): Promise<number> {
  const { rows } = await database.query<{ unpaid: number }>(
    'SELECT count(*) AS unpaid FROM invoices WHERE paid_at IS NULL',
  );
  return rows[0]?.unpaid ?? 0;
}

/** Counts the invoices that the provider refused and that have not changed since. */
export async function countRefused(database: Database): Promise<number> {
  const { rows } = await database.query<{ refused: number }>(
    'SELECT count(*) AS refused FROM invoices WHERE refused_at IS NOT NULL AND paid_at IS NULL',
  );
  return rows[0]?.refused ?? 0;
}

/** Counts the invoices with an unknown outcome at a provider without keys, until somebody settles them. */
export async function countUnsettled(database: Database): Promise<number> {
  const { rows } = await database.query<{ unsettled: number }>(
    'SELECT count(*) AS unsettled FROM invoices WHERE asked_at IS NOT NULL AND unknown_at IS NOT NULL AND paid_at IS NULL',
  );
  return rows[0]?.unsettled ?? 0;
}

/**
 * Counts the invoices that wait for manual review: refused ones, and unsettled ones at a provider without keys. The
 * latter include those in flight.
 */
export async function countStuck(database: Database): Promise<{ refused: number; unsettled: number }> {
  const { rows } = await database.query<{ refused: number; unsettled: number }>(
    `SELECT
       (SELECT count(*) FROM invoices WHERE refused_at IS NOT NULL AND paid_at IS NULL) AS refused,
       (SELECT count(*) FROM invoices WHERE asked_at IS NOT NULL AND paid_at IS NULL) AS unsettled`,
  );
  return rows[0]!;
}

/** Returns whether any invoice is unpaid. */
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
  /** Selects only paid or only unpaid invoices. */
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
