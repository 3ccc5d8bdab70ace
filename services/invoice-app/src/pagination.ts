import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { DatabaseUnavailable } from '@payloop/chassis/database.ts';
import { limitRequests } from '@payloop/chassis/limit.ts';
import type { Response } from 'express';

/** Rows that one query reads. */
const pageSize = 1_000;
/** Retries of a query, once a list has begun, while the database is busy or down. */
const maxRetries = 5;
/** The wait before each retry, in milliseconds. */
const retryDelay = 500;
/** The maximum number of lists sent at a time. Each holds a page or two in memory. */
const maxLists = 20;
/** How long a client may read nothing of a list before it is disconnected, in milliseconds: it keeps others out. */
const idleTimeout = 30_000;

/** Limits how many lists are sent at a time, over all routes together. */
export const createListLimit = () => limitRequests(maxLists, 'lists');

export interface Range {
  /** Selects only ids above this one. */
  after?: number | undefined;
  /** The maximum number of rows. */
  limit?: number | undefined;
}

/**
 * Reads rows in id order, a page at a time, so that any number of them fits in memory.
 * @param read returns the next rows above an id, at most `limit`
 */
export async function* readPages<T extends { id: number }>(
  { after = 0, limit = Infinity }: Range,
  read: (after: number, limit: number) => Promise<T[]>,
): AsyncGenerator<T[]> {
  let behind = after;
  let left = limit;
  while (left > 0) {
    const size = Math.min(left, pageSize);
    const rows = await (behind === after ? read(behind, size) : readPatiently(() => read(behind, size)));
    const last = rows.at(-1);
    if (last === undefined) return;
    yield rows;
    behind = last.id;
    left -= rows.length;
  }
}

/** Retries several times, because a response that has begun can no longer become a 503. */
async function readPatiently<T>(read: () => Promise<T[]>): Promise<T[]> {
  for (let left = maxRetries; ; left -= 1) {
    try {
      return await read();
    } catch (error) {
      if (!(error instanceof DatabaseUnavailable) || left === 0) throw error;
      await sleep(retryDelay);
    }
  }
}

/** Streams rows as one JSON array, as fast as the client reads. */
export async function sendPages<T>(
  response: Response,
  pages: AsyncIterable<T[]>,
  toBody: (row: T) => object,
): Promise<void> {
  const text = toJson(pages, toBody);
  // If the database is down, the first page fails, while the status can still change.
  const opening = await text.next();
  response.setTimeout(idleTimeout);
  response.type('json').write(opening.value);
  await pipeline(text, response);
}

async function* toJson<T>(pages: AsyncIterable<T[]>, toBody: (row: T) => object): AsyncGenerator<string> {
  let separator = '[';
  for await (const rows of pages) {
    yield separator + rows.map((row) => JSON.stringify(toBody(row))).join(',');
    separator = ',';
  }
  yield separator === '[' ? '[]' : ']';
}
