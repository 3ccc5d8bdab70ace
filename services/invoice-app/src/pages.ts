import { pipeline } from 'node:stream/promises';
import { limitRequests } from '@payloop/kit/limit.ts';
import type { Response } from 'express';

/** How many rows are read at a time. */
const pageSize = 1_000;
/** Lists that are sent at a time; each has a page or two in memory. */
const mostLists = 20;
/** How long a client may read nothing of a list before it is cut off, in milliseconds: it keeps others out. */
const idleTimeout = 30_000;

/** In front of every list: lets in only so many at a time, those of all routes together. */
export const createListLimit = () => limitRequests(mostLists, 'lists');

export interface Range {
  /** Only those behind this id. */
  after?: number | undefined;
  /** At most so many. */
  limit?: number | undefined;
}

/**
 * Reads rows in id order, a page at a time, so that any number of them fits in memory.
 * @param read gives the next rows behind an id, at most `limit`
 */
export async function* readPages<T extends { id: number }>(
  { after = 0, limit = Infinity }: Range,
  read: (after: number, limit: number) => Promise<T[]>,
): AsyncGenerator<T[]> {
  let behind = after;
  let left = limit;
  while (left > 0) {
    const rows = await read(behind, Math.min(left, pageSize));
    const last = rows.at(-1);
    if (last === undefined) return;
    yield rows;
    behind = last.id;
    left -= rows.length;
  }
}

/** Streams rows as one JSON array, as fast as the client reads. */
export async function sendPages<T>(
  response: Response,
  pages: AsyncIterable<T[]>,
  toBody: (row: T) => object,
): Promise<void> {
  const text = toJson(pages, toBody);
  // A database that is away shows at the first page, when the status can still be another.
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
