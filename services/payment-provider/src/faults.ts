import { createHash } from 'node:crypto';
import { must } from '@payloop/chassis/config.ts';
import { z } from 'zod';

/** The faults that can be injected into a request, with their effect on the client. */
const kinds = [
  /** Not charged, with a response of 500. */
  'fail',
  /** Charged, without any response. */
  'silent',
  /** Charged, with a response after the client has stopped waiting. */
  'late',
  /** The request arrives twice, at the same time. */
  'duplicate',
  /** Charged, and the connection is reset instead of a response. */
  'reset',
] as const;
export type Fault = (typeof kinds)[number];

/** The delay of a late response, in milliseconds. */
export const lateness = 2_500;

/** Faults by their rates, such as `fail=0.1,late=0.05`. */
export const faultRates = z
  .string()
  .refine(
    (text) => parseRates(text) !== undefined,
    must(`a list such as fail=0.1,late=0.05 of ${kinds.join(', ')}, together at most 1`),
  )
  .transform((text) => parseRates(text) ?? []);

function parseRates(text: string): [Fault, number][] | undefined {
  const rates = text.split(',').map((part): [Fault, number] => {
    const [kind = '', rate = ''] = part.split('=');
    return [kind.trim() as Fault, rate.trim() === '' ? NaN : Number(rate)];
  });
  const sum = rates.reduce((total, [, rate]) => total + rate, 0);
  const valid = rates.every(([kind, rate]) => kinds.includes(kind) && rate >= 0) && sum <= 1;
  return valid ? rates : undefined;
}

/** The number of counters that all payments share. They take 2 MiB, for any number of payments. */
const counters = 2 ** 20;

/**
 * Draws faults and declines. With the same seed, the n-th request for a payment's id always has the same fault, and its
 * n-th charge the same outcome. Among thousands of payments, some share a counter, so that their order matters too.
 */
export class Faults {
  readonly #rates: [Fault, number][];
  readonly #failureRate: number;
  readonly #seed: number;
  readonly #counts = new Uint16Array(counters);

  /** @param failureRate the share of payments that is declined, from 0 to 1 */
  constructor(rates: [Fault, number][], failureRate: number, seed: number) {
    this.#rates = rates;
    this.#failureRate = failureRate;
    this.#seed = seed;
  }

  /** Draws the fault of the next request for this payment; undefined for none. */
  draw(id: string): Fault | undefined {
    if (this.#rates.length === 0) return undefined;
    let left = this.#random(`fault ${id}`);
    for (const [kind, rate] of this.#rates) {
      if (left < rate) return kind;
      left -= rate;
    }
    return undefined;
  }

  /** Draws whether the next charge of this payment is declined. */
  declines(id: string): boolean {
    return this.#failureRate > 0 && this.#random(`decline ${id}`) < this.#failureRate;
  }

  /** Draws the next number from 0 to 1 for this name. */
  #random(name: string): number {
    const counter = hash(name) % counters;
    const count = this.#counts[counter]!;
    this.#counts[counter] = count + 1;
    return hash(`${this.#seed} ${name} ${count}`) / 2 ** 32;
  }
}

/** Returns an integer from 0 to 2 ** 32 - 1. */
function hash(text: string): number {
  return createHash('sha256').update(text).digest().readUInt32BE();
}
