import { isLockTimeout, type Database } from '@payloop/chassis/database.ts';
import type { Step } from '@payloop/chassis/step.ts';
import { activeSpan, withParents, type ParentSpan } from '@payloop/chassis/tracing.ts';
import { findByKey, insertNew, type Charge, type Outcome, type Stored } from './charges.ts';

/** The result of a charge. */
export type ChargeResult =
  /** Definite; `repeated` if an earlier request with the key has had this outcome. */
  | { outcome: Outcome; repeated: boolean }
  /** The key was used before for another id, value or currency. Nothing was charged. */
  | { outcome: 'mismatch' }
  /** The first request with this key is still in flight, so the client has to retry later. */
  | { outcome: 'busy' }
  /** The data of the charge was reset. Nothing was charged, and never will be. */
  | { outcome: 'retired' };

interface Waiting {
  charge: Charge;
  /** The span of the caller, for its trace. */
  parent: ParentSpan | undefined;
  resolve: (result: ChargeResult) => void;
  reject: (error: unknown) => void;
}

/** The maximum number of charges that one statement stores. */
const maxBatchSize = 1_000;
/** The maximum number of statements in flight. Meanwhile the next batch fills up. */
const maxInFlight = 4;

/**
 * Charges payments, each key once. One statement stores all charges that arrive at the same time, as a commit costs the
 * same for one as for hundreds.
 */
export class Ledger {
  readonly #database: Database;
  readonly #step: Step;
  readonly #waiting: Waiting[] = [];
  #inFlight = 0;

  constructor(database: Database, step: Step) {
    this.#database = database;
    this.#step = step;
  }

  /**
   * Charges a payment, or finds the earlier outcome of its key. A definite outcome is stored before this resolves, and
   * stays the outcome of the key.
   * @throws {DatabaseUnavailable} when it may or may not be stored
   */
  charge(charge: Charge): Promise<ChargeResult> {
    const result = new Promise<ChargeResult>((resolve, reject) =>
      this.#waiting.push({ charge, parent: activeSpan(), resolve, reject }),
    );
    // Deferred, so that all charges of this turn of the event loop are stored together.
    if (this.#waiting.length === 1) setImmediate(() => void this.#flush());
    return result;
  }

  async #flush(): Promise<void> {
    if (this.#inFlight >= maxInFlight || this.#waiting.length === 0) return;
    // A batch has one epoch. That is nearly always all waiting charges, as they belong to one client's data.
    const { epoch } = this.#waiting[0]!.charge;
    const other = this.#waiting.findIndex(({ charge }) => charge.epoch !== epoch);
    const batch = this.#waiting.splice(0, Math.min(maxBatchSize, other < 0 ? maxBatchSize : other));
    this.#inFlight += 1;
    try {
      const parents = () => batch.map(({ parent }) => parent);
      const results = await withParents(parents, () => this.#store(batch.map(({ charge }) => charge)));
      batch.forEach(({ resolve }, index) => resolve(results[index]!));
    } catch (error) {
      for (const { reject } of batch) reject(error);
    } finally {
      this.#inFlight -= 1;
    }
    // Concurrent batches end together, so each one starts as many new batches as there is room for.
    for (let used = this.#inFlight; used < maxInFlight; used += 1) void this.#flush();
  }

  async #store(charges: Charge[]): Promise<ChargeResult[]> {
    const { query } = this.#database;
    const first = firstOfEachKey(charges);
    let known: string[] | undefined;
    try {
      known = await this.#step('store', () => insertNew(query, [...first.values()]));
    } catch (error) {
      if (!isLockTimeout(error)) throw error;
      // Another replica holds one of these keys for long, so nothing was stored. Retries each key alone, so that only
      // that key is busy.
      if (charges.length === 1) return [{ outcome: 'busy' }];
      const results = await Promise.all(charges.map((charge) => this.#store([charge])));
      return results.flat();
    }
    if (known === undefined) return charges.map(() => ({ outcome: 'retired' }));
    const before = known.length > 0 ? await this.#step('look up', () => findByKey(query, known)) : new Map();
    const isKnown = new Set<string>(known);
    return charges.map((charge) => {
      if (charge.key === undefined) return { outcome: charge.outcome, repeated: false };
      const stored: Stored | undefined = before.get(charge.key);
      if (stored === undefined && isKnown.has(charge.key)) {
        throw new Error('a key is known, but its stored charge is not found');
      }
      const original = stored ?? first.get(charge.key)!;
      if (!isSame(charge, original)) return { outcome: 'mismatch' };
      return { outcome: original.outcome, repeated: stored !== undefined || original !== charge };
    });
  }
}

/** Picks one charge per key, as two with the same key in one statement would not see each other. */
function firstOfEachKey(charges: Charge[]): Map<string | symbol, Charge> {
  const first = new Map<string | symbol, Charge>();
  for (const charge of charges) {
    const key = charge.key ?? Symbol('no key');
    if (!first.has(key)) first.set(key, charge);
  }
  return first;
}

function isSame(charge: Charge, other: Charge | Stored): boolean {
  return (
    charge.paymentId === other.paymentId &&
    charge.currency === other.currency &&
    charge.amount === BigInt(other.amount)
  );
}
