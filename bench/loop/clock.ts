// Measures the time from a save to the first answer that shows it.
import { writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { ask, type Ask } from '../../tests/cluster/ask.ts';

/** A file to save, and the URL of a server that shows it. */
export interface Way {
  name: string;
  /** The saved file and its original content. */
  file: string;
  original: string;
  url: string;
  /** Identifies the code in the folder as it is now. */
  saved(): string;
  /** Identifies the code that an answer of the URL shows. */
  served(answer: string): string | undefined;
  /** Repairs the server after it did not serve a save. */
  mend?: () => Promise<unknown>;
}

/** The poll interval, in milliseconds. On average an answer is noticed half of it too late, whatever the way. */
const pause = 10;
/** How long a save may take, in milliseconds: with an image build, and with a copy of the file only. */
export const patience = { build: 300_000, sync: 30_000 };

/**
 * Saves a new line and waits for the first answer that shows it.
 * @returns the time of the save, by `performance.now()`, and the milliseconds until the answer: Infinity if none came
 *   within `patience.sync`
 */
export async function save(way: Way): Promise<{ at: number; ms: number }> {
  const at = performance.now();
  // Writes the file in one call: Tilt would also copy a half-written one.
  writeFileSync(way.file, `${way.original}// ${Math.random()}\n`);
  const saved = way.saved();
  const ms = await since(at, patience.sync, async () => way.served(await bodyOf(way.url)) === saved);
  return { at, ms };
}

/** Polls until `isSo` resolves to true. @returns the milliseconds since `start`, or Infinity after `limit` of them */
export async function since(start: number, limit: number, isSo: () => Promise<boolean>): Promise<number> {
  while (performance.now() - start < limit) {
    // A restarting process refuses or resets connections.
    if (await isSo().catch(() => false)) return performance.now() - start;
    await sleep(pause);
  }
  return Infinity;
}

/** Returns the body of a 200. @throws {Error} for any other status, with the status and the start of the body */
export async function bodyOf(url: string, options: Ask = { patience: 2_000 }): Promise<string> {
  const { status, body } = await ask(url, options);
  if (status !== 200) throw new Error(`${status} ${body.slice(0, 100)}`);
  return body;
}

/** Returns a percentile by nearest rank. @param share from 0 to 1 */
export function percentile(values: number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? NaN;
}

export const median = (values: number[]) => percentile(values, 0.5);
