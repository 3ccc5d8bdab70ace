import type { Database } from '@payloop/chassis/database.ts';
import { minorUnitDigits } from '@payloop/chassis/money.ts';
import { z } from 'zod';
import { isLive } from './batches.ts';

/**
 * The state of an invoice on the page. Refused: nobody asks for it until it is changed. Paying: its batch is leased to
 * somebody. Unknown: its attempt may have been charged, and recovery asks again.
 */
export const states = ['paid', 'declined', 'refused', 'paying', 'unknown', 'unpaid'] as const;
export type State = (typeof states)[number];

/** What a list can be narrowed to; `unpaid` is all that is not paid. */
export const filters = ['all', 'unpaid', 'declined', 'refused', 'paid'] as const;
export type Filter = (typeof filters)[number];

const decimal = () =>
  z.string().meta({ description: 'In major units, as a decimal with the digits of its currency.' });

const currencySum = () => z.object({ count: z.int(), amount: decimal() }).meta({ id: 'Sum' });
type Sum = z.infer<ReturnType<typeof currencySum>>;

/** The invoices of one currency, by what has become of them. */
const currencySums = () =>
  z.object({
    currency: z.string(),
    paid: currencySum(),
    open: currencySum().meta({ description: 'All that is not paid.' }),
    declined: currencySum(),
    refused: currencySum(),
    paying: currencySum(),
    unknown: currencySum(),
    unpaid: currencySum(),
  });
export type CurrencySums = z.infer<ReturnType<typeof currencySums>>;

/** What all invoices add up to at one moment. */
export const totalsBody = () =>
  z
    .object({
      running: z.boolean().meta({ description: 'Whether a run is under way, on any replica.' }),
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
        description:
          'When it was paid, declined or refused, or last asked for in vain where keys are ignored.',
      }),
      reason: z
        .string()
        .nullable()
        .meta({ description: 'Why it was declined or refused, as the provider said it.' }),
    })
    .meta({ id: 'Row' });
export type Row = z.infer<ReturnType<typeof row>>;

/** Rows of a list, and how long the list is. */
export const rowsBody = () => z.object({ total: z.int(), rows: z.array(row()) }).meta({ id: 'Rows' });
export type Rows = z.infer<ReturnType<typeof rowsBody>>;

/** Counts and sums of one batch, by currency and state. */
interface Part {
  currency: string;
  state: State;
  count: number;
  /** In minor units; a sum may be more than a double holds. */
  amount: bigint;
}

/** A batch as it was when its invoices were added up. */
interface Counted {
  /** The version of its row, and whether its lease was live. */
  version: string;
  parts: Part[];
}

/** A batch without a lease is nobody's; one whose lease ran out, or that was given back with it, is left open. */
const isLeased = `holder IS NOT NULL AND ${isLive}`;

/** Why nobody asks again for an invoice that was asked for at a provider without keys. */
const unsettledReason = 'the provider ignores keys: look it up there';

/** The state of an invoice, joined with its batch. */
const stateOf = `CASE
  WHEN paid_at IS NOT NULL THEN 'paid'
  WHEN refused_at IS NOT NULL THEN 'refused'
  WHEN asked_at IS NOT NULL AND NOT coalesce(${isLeased}, false) THEN 'unknown'
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

/** Batches that are added up in one statement. */
const batchesAtATime = 100;
/** Batches that are added up again although nobody claimed them: invoices may have come in by SQL. */
const batchesToDoubt = 10;
/** How long a look is good enough for those who ask for rows, in milliseconds. */
const freshFor = 250;

/**
 * The invoices added up, however many there are. They change where their batch was claimed, and each claim makes a
 * new version of the batch's row: so only batches are read whose version is new, or that somebody is paying. What
 * is kept here says nothing by itself: each look compares it with Postgres, whichever replica has written there.
 */
export class Overview {
  readonly #database: Database;
  /** By the first id in them, in the order of their ids. */
  #counted = new Map<number, Counted>();
  #doubted = 0;
  #looked = -Infinity;
  #looking: Promise<void> | undefined;

  constructor(database: Database) {
    this.#database = database;
  }

  /** @throws {DatabaseUnavailable} */
  async read(): Promise<Totals> {
    await this.#look();
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
   * Reads the rows at these places of a list in id order, with the list's length.
   * @param from the first place, from 0
   * @throws {DatabaseUnavailable}
   */
  async readRows(filter: Filter, from: number, limit: number): Promise<Rows> {
    if (performance.now() - this.#looked > freshFor) await this.#look();
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
      // OFFSET 0 keeps the planner from making one join of it, for which it would read the whole table.
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

  /** One at a time, for all who ask meanwhile. */
  #look(): Promise<void> {
    this.#looking ??= this.#compare().finally(() => (this.#looking = undefined));
    return this.#looking;
  }

  async #compare(): Promise<void> {
    const { rows } = await this.#database.query<{ first: number; version: string }>(
      `SELECT first_id AS first, xmin || CASE WHEN ${isLeased} THEN ' paying' WHEN leased_until IS NULL THEN '' ELSE ' left' END AS version
       FROM batches ORDER BY first_id`,
    );
    const before = this.#counted;
    const doubted = rows.some(({ version }) => isPaying(version)) ? new Set() : this.#doubt(rows);
    const stale = rows.filter(
      ({ first, version }) =>
        isPaying(version) || doubted.has(first) || before.get(first)?.version !== version,
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
    this.#looked = performance.now();
  }

  /** The next few, so that all of them have their turn. */
  #doubt(rows: { first: number }[]): Set<number> {
    const from = this.#doubted < rows.length ? this.#doubted : 0;
    this.#doubted = from + batchesToDoubt;
    return new Set(rows.slice(from, this.#doubted).map(({ first }) => first));
  }

  async #addUp(among: number[], into: Map<number, Part[]>): Promise<void> {
    for (const first of among) into.set(first, []);
    // LATERAL, as the planner would rather read the whole table than look a thousand ids up.
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
  // A decline of an earlier attempt says nothing of the one under way.
  const isUnsettled = state === 'unknown' && rest.reason === unsettledReason;
  const isOver = state === 'paid' || state === 'declined' || state === 'refused' || isUnsettled;
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
