import type { ClientBase } from 'pg';

/** Sessions in the databases of both services. */
export interface Sessions {
  app: ClientBase;
  provider: ClientBase;
}

/** The state that must never change again: the paid invoices and the history so far. */
export interface Snapshot {
  /** Identifies the data. After a reset, nothing is compared. */
  epoch: unknown;
  paid: unknown;
  events: unknown;
}

/** Reads the ledger as one JSON value, which a query on the other database can join. */
const ledger = `
  SELECT coalesce(json_agg(json_build_object('invoice', payment_id, 'key', idempotency_key, 'outcome', outcome,
    'amount', amount, 'currency', currency)), '[]') AS ledger
  FROM payments`;

/**
 * Returns a row for each violation, with the number of the rule in README.md under Payments. A reset that is unfinished
 * counts as rule 7. $1 is the ledger. $2 and $3 are the snapshot's invoices and events, empty without a snapshot. $4 is
 * whether the provider honours keys.
 */
const rules = `
  WITH ledger AS (
    SELECT * FROM json_to_recordset($1::json)
      AS (invoice text, key uuid, outcome text, amount numeric, currency text)
  ), charges AS (
    SELECT * FROM ledger WHERE outcome = 'charged'
  ), invoices AS (
    SELECT 'I' || id AS invoice, amount, currency, paid_at, asked_at, unknown_at, attempt_key AS key FROM invoices
  ), events AS (
    -- The ledger has no refusals: a refusal charges nothing and leaves its attempt open.
    SELECT 'I' || invoice_id AS invoice, idempotency_key AS key, kind, amount, currency FROM payment_events
    WHERE kind IN ('charged', 'declined')
  ), sums AS (
    SELECT currency, sum(invoiced) AS invoiced, sum(recorded) AS recorded, sum(charged) AS charged FROM (
      SELECT currency, amount AS invoiced, 0 AS recorded, 0 AS charged FROM invoices WHERE paid_at IS NOT NULL
      UNION ALL SELECT currency, 0, amount, 0 FROM events WHERE kind = 'charged'
      UNION ALL SELECT currency, 0, 0, amount FROM charges
        WHERE invoice NOT IN (SELECT invoice FROM invoices WHERE unknown_at IS NOT NULL)
    ) AS amounts GROUP BY currency
  )
  SELECT 1 AS rule, format('%s was charged %s times', invoice, count(*)) AS line
  FROM charges GROUP BY invoice HAVING count(*) > 1

  UNION ALL
  SELECT 2, format('%s is paid with %s %s, but charged with %s %s', i.invoice, i.amount, i.currency,
    coalesce(c.amount::text, 'nothing'), c.currency)
  FROM invoices AS i LEFT JOIN charges AS c USING (invoice)
  WHERE paid_at IS NOT NULL AND (c.amount, c.currency) IS DISTINCT FROM (i.amount::numeric, i.currency)

  UNION ALL
  SELECT 3, format('%s was charged but is not paid', c.invoice)
  FROM charges AS c LEFT JOIN invoices AS i USING (invoice) WHERE paid_at IS NULL AND unknown_at IS NULL
  UNION ALL
  SELECT 3, format('%s was sent to a provider that ignores keys, but its unknown outcome is not reported', invoice)
  FROM invoices WHERE asked_at IS NOT NULL AND unknown_at IS NULL
  UNION ALL
  SELECT 3, format('%s has an unknown outcome although the provider honours keys', invoice)
  FROM invoices WHERE asked_at IS NOT NULL AND $4::boolean

  UNION ALL
  SELECT 4, format('%s is %s, but its history has %s charges with its key, amount and currency', i.invoice,
    CASE WHEN paid_at IS NULL THEN 'unpaid' ELSE 'paid' END, count(e.key))
  FROM invoices AS i LEFT JOIN events AS e
    ON (e.invoice, e.kind, e.amount, e.currency) = (i.invoice, 'charged', i.amount, i.currency) AND e.key = i.key
  GROUP BY i.invoice, paid_at HAVING count(e.key) <> CASE WHEN paid_at IS NULL THEN 0 ELSE 1 END
  UNION ALL
  SELECT 4, format('I%s was paid, and is now unpaid or has another payment time', was.id)
  FROM json_to_recordset($2::json) AS was (id bigint, paid_at timestamptz)
  WHERE NOT EXISTS (SELECT FROM invoices WHERE invoice = 'I' || was.id AND invoices.paid_at = was.paid_at)
  UNION ALL
  SELECT 4, format('event %s of the history was changed or removed', was.id)
  FROM json_to_recordset($3::json) AS was (id bigint, event text)
  WHERE NOT EXISTS (SELECT FROM payment_events AS e WHERE e.id = was.id AND e::text = was.event)

  UNION ALL
  SELECT 5, format('%s: invoices paid %s, history %s, ledger %s', currency, invoiced, recorded, charged)
  FROM sums WHERE invoiced <> recorded OR recorded <> charged

  UNION ALL
  SELECT 6, format('attempt %s of %s ended %s times', key, min(invoice), count(*))
  FROM events GROUP BY key HAVING count(*) > 1
  UNION ALL
  SELECT 6, format('attempt %s: history %s, ledger %s', coalesce(e.key, l.key),
    coalesce(e.kind || ' ' || e.invoice, 'nothing'), coalesce(l.outcome || ' ' || l.invoice, 'nothing'))
  FROM events AS e FULL JOIN ledger AS l ON e.key = l.key
  WHERE $4 AND (e.invoice, e.kind, e.amount::numeric, e.currency)
    IS DISTINCT FROM (l.invoice, l.outcome, l.amount, l.currency)

  UNION ALL
  SELECT 7, format('batch %s is still leased, holder %s, until %s', first_id, holder, leased_until)
  FROM batches WHERE holder IS NOT NULL OR leased_until IS NOT NULL
  UNION ALL
  SELECT 7, 'a reset is unfinished' FROM epoch WHERE resetting_at IS NOT NULL

  ORDER BY rule, line`;

/**
 * Checks the seven rules. Nothing may be in flight, and recovery must have finished.
 * @param before a snapshot: its paid invoices and its history must be unchanged
 * @param keys whether the provider honours keys; if not, an unknown outcome is reported and never retried
 * @returns one line for each violation, such as `rule 1: I5 was charged 2 times`
 */
export async function brokenRules(
  { app, provider }: Sessions,
  before?: Snapshot,
  keys = true,
): Promise<string[]> {
  const charges = await provider.query<{ ledger: unknown }>(ledger);
  const { rows: epochs } = await app.query<{ id: string }>('SELECT id FROM epoch');
  if (before?.epoch !== epochs[0]?.id) before = undefined;
  const { rows } = await app.query<{ rule: number; line: string }>({
    name: 'rules',
    text: rules,
    values: [
      ...[charges.rows[0]?.ledger, before?.paid ?? [], before?.events ?? []].map((value) =>
        JSON.stringify(value),
      ),
      keys,
    ],
  });
  return rows.map(({ rule, line }) => `rule ${rule}: ${line}`);
}

/** Takes the snapshot that `brokenRules` compares with later. */
export async function takeSnapshot(app: ClientBase): Promise<Snapshot> {
  const { rows } = await app.query<Snapshot>(`
    SELECT
      (SELECT id FROM epoch) AS epoch,
      (SELECT coalesce(json_agg(json_build_object('id', id, 'paid_at', paid_at)), '[]')
       FROM invoices WHERE paid_at IS NOT NULL) AS paid,
      (SELECT coalesce(json_agg(json_build_object('id', id, 'event', e::text)), '[]')
       FROM payment_events AS e) AS events`);
  return rows[0]!;
}
