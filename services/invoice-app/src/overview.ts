import type { Database } from '@payloop/chassis/database.ts';
import { minorUnitDigits } from '@payloop/chassis/money.ts';
import { z } from 'zod';
import { isLive } from './batches.ts';

/**
 * The state of an invoice on the page. Refused: it is not retried until somebody changes it. Paying: its batch has a
 * lease holder. Unknown: its attempt may have been charged, and recovery retries it. Unsettled: it may have been charged
 * by a provider that ignores keys. It is not retried, and somebody has to look it up there.
 */
export const states = ['paid', 'declined', 'refused', 'paying', 'unknown', 'unsettled', 'unpaid'] as const;
export type State = (typeof states)[number];

/** The filters of the list; `unpaid` matches every state but paid. */
export const filters = ['all', 'unpaid', 'declined', 'refused', 'paid'] as const;
export type Filter = (typeof filters)[number];

const decimal = () =>
  z.string().meta({ description: 'In major units, with as many decimals as its currency has.' });

const currencySum = () => z.object({ count: z.int(), amount: decimal() }).meta({ id: 'Sum' });
type Sum = z.infer<ReturnType<typeof currencySum>>;

/** The invoices of one currency, by state. */
const currencySums = () =>
  z.object({
    currency: z.string(),
    paid: currencySum(),
    open: currencySum().meta({ description: 'Every invoice that is not paid.' }),
    declined: currencySum(),
    refused: currencySum(),
    paying: currencySum(),
    unknown: currencySum(),
    unsettled: currencySum(),
    unpaid: currencySum(),
  });
export type CurrencySums = z.infer<ReturnType<typeof currencySums>>;

/** The totals of all invoices at one moment. */
export const totalsBody = () =>
  z
    .object({
      running: z.boolean().meta({ description: 'Whether a payment run is in progress on any replica.' }),
      sums: z.array(currencySums()),
    })
    .meta({ id: 'Totals' });
export type Totals = z.infer<ReturnType<typeof totalsBody>>;

const row = () =>
  z
    .object({
      id: z.string(),
      amount: decimal(),
      currency: z.string(),
      state: z.enum(states),
      at: z.string().nullable().meta({
        description: 'When it was paid, declined or refused. Or when it was sent, if it is unsettled.',
      }),
      reason: z.string().nullable().meta({
        description: 'Why it was declined or refused, in the provider’s words. Or why it is unsettled.',
      }),
    })
    .meta({ id: 'Row' });
export type Row = z.infer<ReturnType<typeof row>>;

/** Rows of a list, with the length of the list. */
export const rowsBody = () => z.object({ total: z.int(), rows: z.array(row()) }).meta({ id: 'Rows' });
export type Rows = z.infer<ReturnType<typeof rowsBody>>;

/** The count and sum of the invoices of one batch in one currency and state. */
interface Part {
  currency: string;
  state: State;
  count: number;
  /** In minor units. A bigint, as a sum may be more than a double holds. */
  amount: bigint;
}

/** A batch as of the refresh that last summed it. */
interface Counted {
  /** The version of its row, and the state of its lease. */
  version: string;
  parts: Part[];
}

/**
 * Tests that a process is paying the batch. A lease that is expired or has no holder only shows that the batch may have
 * unknown outcomes.
 */
const isLeased = `holder IS NOT NULL AND ${isLive}`;

/** The reason shown for an invoice that is not retried because the provider ignores keys. */
const unsettledReason = 'the provider ignores keys: look it up there';

/** Derives the state of an invoice, joined with its batch. */
const stateOf = `CASE
  WHEN paid_at IS NOT NULL THEN 'paid'
  WHEN refused_at IS NOT NULL THEN 'refused'
  WHEN asked_at IS NOT NULL AND (unknown_at IS NOT NULL OR NOT coalesce(${isLeased}, false)) THEN 'unsettled'
  WHEN declined_at IS NOT NULL AND asked_at IS NULL AND (leased_until IS NULL OR declined_at >= claimed_at) THEN 'declined'
  WHEN leased_until IS NULL THEN 'unpaid'
  WHEN ${isLeased} THEN 'paying'
  ELSE 'unknown' END`;

const filterOf: Record<Filter, string> = {
  all: 'true',
  unpaid: `state <> 'paid'`,
  declined: `state = 'declined'`,
  refused: `state = 'refused'`,
  paid: `state = 'paid'`,
};

/** The maximum number of batches that one statement sums. */
const batchesAtATime = 100;
/** Unclaimed batches that each refresh sums again: invoices may have been inserted by SQL. */
const batchesToRecheck = 10;
/** How long requests for rows use the sums of the last refresh, in milliseconds. */
const freshFor = 250;

/**
 * Sums any number of invoices. Invoices change after their batch is claimed, and each claim creates a new version of
 * the batch's row. So a refresh reads only the batches that have a new version or are being paid. Each refresh compares
 * the cached sums with Postgres, so it sees the writes of every replica.
 */
export class Overview {
  readonly #database: Database;
  /** By the first id of the batch, in id order. */
  #counted = new Map<number, Counted>();
  #recheckedTo = 0;
  #refreshedAt = -Infinity;
  #refreshing: Promise<void> | undefined;

  constructor(database: Database) {
    this.#database = database;
  }

  /** @throws {DatabaseUnavailable} */
  async read(): Promise<Totals> {
    await this.#refresh();
    const byCurrency = new Map<string, Map<State, { count: number; amount: bigint }>>();
    let running = false;
    for (const { version, parts } of this.#counted.values()) {
      running ||= isPaying(version);
      for (const { currency, state, count, amount } of parts) {
        const sums = byCurrency.get(currency) ?? new Map();
        const sum = sums.get(state) ?? { count: 0, amount: 0n };
        sums.set(state, { count: sum.count + count, amount: sum.amount + amount });
        byCurrency.set(currency, sums);
      }
    }
    const sums = [...byCurrency].map(([currency, given]): CurrencySums => {
      const sumOf = (...among: State[]): Sum => {
        const parts = among.map((state) => given.get(state) ?? { count: 0, amount: 0n });
        const amount = parts.reduce((total, part) => total + part.amount, 0n);
        return {
          count: parts.reduce((total, part) => total + part.count, 0),
          amount: toDecimal(amount, currency),
        };
      };
      const open = sumOf(...states.filter((state) => state !== 'paid'));
      const each = Object.fromEntries(states.map((state) => [state, sumOf(state)])) as Record<State, Sum>;
      return Object.assign({ currency, open }, each);
    });
    return { running, sums: sums.toSorted((a, b) => (a.currency < b.currency ? -1 : 1)) };
  }

  /**
   * Reads a range of rows of a list in id order, with the length of the list.
   * @param from the position of the first row, counted from 0
   * @throws {DatabaseUnavailable}
   */
  async readRows(filter: Filter, from: number, limit: number): Promise<Rows> {
    if (performance.now() - this.#refreshedAt > freshFor) await this.#refresh();
    let total = 0;
    let skip = 0;
    const among: number[] = [];
    for (const [first, { parts }] of this.#counted) {
      const count = countOf(filter, parts);
      if (count > 0 && total + count > from && total < from + limit) {
        if (among.length === 0) skip = from - total;
        among.push(first);
      }
      total += count;
    }
    const { rows } = await this.#database.query<
      Omit<Row, 'id' | 'amount' | 'at'> & { id: number; amount: number; at: Date | null }
    >(
      // OFFSET 0 keeps the planner from flattening this into one join, for which it would scan the whole table.
      `SELECT row.* FROM batches CROSS JOIN LATERAL (
         SELECT id, amount, currency, ${stateOf} AS state, coalesce(paid_at, refused_at, asked_at, declined_at) AS at,
           CASE WHEN asked_at IS NOT NULL THEN '${unsettledReason}'
             WHEN refused_at IS NOT NULL THEN refusal_reason ELSE decline_reason END AS reason
         FROM invoices WHERE id BETWEEN first_id AND last_id OFFSET 0
       ) AS row
       WHERE first_id = ANY ($1::bigint[]) AND ${filterOf[filter]} ORDER BY id OFFSET $2 LIMIT $3`,
      [among, skip, limit],
    );
    return { total, rows: rows.map(toRow) };
  }

  /** Runs one refresh at a time, shared by concurrent callers. */
  #refresh(): Promise<void> {
    this.#refreshing ??= this.#compare().finally(() => (this.#refreshing = undefined));
    return this.#refreshing;
  }

  async #compare(): Promise<void> {
    const { rows } = await this.#database.query<{ first: number; version: string }>(
      `SELECT first_id AS first, xmin || CASE WHEN ${isLeased} THEN ' paying' WHEN leased_until IS NULL THEN '' ELSE ' left' END AS version
       FROM batches ORDER BY first_id`,
    );
    const before = this.#counted;
    const rechecked = rows.some(({ version }) => isPaying(version)) ? new Set() : this.#pickRechecks(rows);
    const stale = rows.filter(
      ({ first, version }) =>
        isPaying(version) || rechecked.has(first) || before.get(first)?.version !== version,
    );
    const fresh = new Map<number, Part[]>();
    for (let at = 0; at < stale.length; at += batchesAtATime) {
      await this.#addUp(
        stale.slice(at, at + batchesAtATime).map(({ first }) => first),
        fresh,
      );
    }
    this.#counted = new Map(
      rows.map(({ first, version }) => [
        first,
        { version, parts: fresh.get(first) ?? before.get(first)?.parts ?? [] },
      ]),
    );
    this.#refreshedAt = performance.now();
  }

  /** Picks the next few batches, so that each of them has its turn. */
  #pickRechecks(rows: { first: number }[]): Set<number> {
    const from = this.#recheckedTo < rows.length ? this.#recheckedTo : 0;
    this.#recheckedTo = from + batchesToRecheck;
    return new Set(rows.slice(from, this.#recheckedTo).map(({ first }) => first));
  }

  async #addUp(among: number[], into: Map<number, Part[]>): Promise<void> {
    for (const first of among) into.set(first, []);
    // LATERAL, as the planner would otherwise scan the whole table instead of looking up a thousand ids.
    const { rows } = await this.#database.query<Omit<Part, 'amount'> & { first: number; amount: string }>(
      `SELECT first_id AS first, currency, state, count, amount
       FROM batches CROSS JOIN LATERAL (
         SELECT currency, ${stateOf} AS state, count(*) AS count, sum(amount) AS amount
         FROM invoices WHERE id BETWEEN first_id AND last_id GROUP BY 1, 2
       ) AS part
       WHERE first_id = ANY ($1::bigint[])`,
      [among],
    );
    for (const { first, amount, ...part } of rows)
      into.get(first)?.push(Object.assign(part, { amount: BigInt(amount) }));
  }
}

function isPaying(version: string): boolean {
  return version.endsWith(' paying');
}

function countOf(filter: Filter, parts: Part[]): number {
  const matches = ({ state }: Part) =>
    filter === 'all' || state === filter || (filter === 'unpaid' && state !== 'paid');
  return parts.reduce((total, part) => total + (matches(part) ? part.count : 0), 0);
}

function toRow({
  id,
  amount,
  currency,
  at,
  state,
  ...rest
}: {
  id: number;
  amount: number;
  currency: string;
  state: State;
  at: Date | null;
  reason: string | null;
}): Row {
  // A decline of an earlier attempt says nothing about the current one.
  const isOver = ['paid', 'declined', 'refused', 'unsettled'].includes(state);
  return {
    id: `I${id}`,
    amount: toDecimal(amount, currency),
    currency,
    state,
    at: isOver ? (at?.toISOString() ?? null) : null,
    reason: isOver ? rest.reason : null,
  };
}

function toDecimal(minor: number | bigint, currency: string): string {
  const digits = minorUnitDigits(currency);
  const text = `${minor < 0 ? -minor : minor}`.padStart(digits + 1, '0');
  const whole = text.slice(0, text.length - digits);
  return `${minor < 0 ? '-' : ''}${whole}${digits > 0 ? `.${text.slice(-digits)}` : ''}`;
}
