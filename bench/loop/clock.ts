// How long a save takes until it is served.
import { writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { ask, type Ask } from '../../tests/cluster/ask.ts';

/** A file whose saves are served somewhere. */
export interface Way {
  name: string;
  /** The file that is saved, and what it holds at first. */
  file: string;
  original: string;
  url: string;
  /** What tells the code of the folder from another, as it is in the folder now. */
  saved(): string;
  /** The same, as an answer of the URL has it. */
  served(answer: string): string | undefined;
  /** Brings it back when it did not serve a save. */
  mend?: () => Promise<unknown>;
}

/** Between two questions, in milliseconds: an answer is noticed half of it late, on average, in each way alike. */
const pause = 10;
/** How long a save may take, in milliseconds: with an image built on the way, or without. */
export const patience = { build: 300_000, sync: 30_000 };

/**
 * Saves a line that was not there before and waits for the first answer that shows it.
 * @returns when it was saved, by `performance.now()`, and how many milliseconds it took: Infinity where it was not
 *   served within half a minute
 */
export async function save(way: Way): Promise<{ at: number; ms: number }> {
  const at = performance.now();
  // At one stroke: Tilt would copy what is half written, too.
  writeFileSync(way.file, `${way.original}// ${Math.random()}\n`);
  const saved = way.saved();
  const ms = await since(at, patience.sync, async () => way.served(await bodyOf(way.url)) === saved);
  return { at, ms };
}

/** Asks until the answer is true. @returns the milliseconds since `start`; Infinity when they are too many */
export async function since(start: number, most: number, isSo: () => Promise<boolean>): Promise<number> {
  while (performance.now() - start < most) {
    // What starts anew refuses connections or breaks them off.
    if (await isSo().catch(() => false)) return performance.now() - start;
    await sleep(pause);
  }
  return Infinity;
}

/** The body of an answer with status 200. @throws {Error} for any other, with its status and how its body begins */
export async function bodyOf(url: string, options: Ask = { patience: 2_000 }): Promise<string> {
  const { status, body } = await ask(url, options);
  if (status !== 200) throw new Error(`${status} ${body.slice(0, 100)}`);
  return body;
}

/** The value that a share of the values does not exceed, by nearest rank. */
export function percentile(values: number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? NaN;
}

export const median = (values: number[]) => percentile(values, 0.5);
