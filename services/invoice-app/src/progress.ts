import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { DatabaseUnavailable } from '@payloop/chassis/database.ts';
import { HttpError } from '@payloop/chassis/http-error.ts';
import { reduceError, type Log } from '@payloop/chassis/log.ts';
import { error } from '@payloop/chassis/openapi.ts';
import type { Request, Response } from 'express';
import { z } from 'zod';
import type { Overview } from './overview.ts';

/** How often Postgres is looked at, in milliseconds: while invoices are being paid, and otherwise. */
const every = { busy: 250, idle: 1_000 };
/** How long after a request to pay it is looked at that often, in milliseconds. */
const attention = 2_000;
/** Proxies close a connection on which nothing is sent; in milliseconds. */
const heartbeat = 15_000;
/** When a browser asks again, in milliseconds, after the stream ended: soon, as another process is there already. */
const retry = 500;
/** More than watch a page; each costs a connection. */
export const mostWatchers = 200;
/** How old a stream has to be, in milliseconds, to make place for another of the same client or the same proxy. */
const leastStay = 10_000;

export const describeProgress = () => ({
  get: {
    summary: 'What the invoices add up to, told anew whenever it changes',
    description:
      'Server-sent events: `progress` with `Totals` as its data, and `unavailable` with an error while the database ' +
      'is away. It ends with the process: who goes on watching asks again.',
    answers: {
      200: {
        description: 'A stream without end.',
        content: { 'text/event-stream': z.string() },
        headers: z.object({ 'Cache-Control': z.literal('no-store'), 'X-Accel-Buffering': z.literal('no') }),
      },
      503: error('Too many watch, or the process is about to end.', z.object({ 'Retry-After': z.string() })),
    },
  },
});

/** Who watches. */
interface Watcher {
  /** The address that it came from: a client's, or that of a proxy in front of many. */
  from: string | undefined;
  /** Since when, in milliseconds of `performance.now()`. */
  since: number;
  /** The id of what it was last told. */
  told?: string;
}

/** What watchers are told. */
interface News {
  /** The same for the same news, on every replica. */
  id: string;
  text: string;
}

/**
 * Tells those who watch what the invoices add up to, as server-sent events: `progress` with the totals, and
 * `unavailable` where the database is away. One look at Postgres serves all of them, and nobody looks for nobody.
 */
export class Progress {
  readonly #overview: Overview;
  readonly #log: Log;
  /** In the order in which they came. */
  readonly #watchers = new Map<Response, Watcher>();
  #news: News | undefined;
  #polling: Promise<void> | undefined;
  #pause = new AbortController();
  #attentiveUntil = 0;
  #beat = 0;
  #stopped = false;

  constructor(overview: Overview, log: Log) {
    this.#overview = overview;
    this.#log = log;
  }

  /** Answers with a stream that ends when the client goes or the process stops. @throws {HttpError} 503 */
  watch(request: Request, response: Response): void {
    const watcher: Watcher = { from: request.socket.remoteAddress, since: performance.now() };
    if (this.#stopped) throw new HttpError(503, 'shutting down', 5);
    if (!this.#makePlace(watcher)) throw new HttpError(503, 'too many watchers, try again later', 5);
    response.set({
      'Content-Type': 'text/event-stream',
      'Cache-Control': 'no-store',
      // For proxies that would wait until there is more to send.
      'X-Accel-Buffering': 'no',
    });
    if (request.method === 'HEAD') {
      response.end();
      return;
    }
    response.write(`retry: ${retry}\n\n`);
    // Told once, whatever it knew before: a page that comes back has to learn that it is right.
    this.#watchers.set(response, watcher);
    response.on('close', () => this.#leave(response));
    if (this.#news) this.#tell(response, this.#news);
    this.#polling ??= this.#poll();
  }

  /** Makes it look now, and closely for a while: something is about to change. */
  attend(): void {
    this.#attentiveUntil = performance.now() + attention;
    this.#pause.abort();
  }

  /** Ends every stream. */
  async stop(): Promise<void> {
    this.#stopped = true;
    for (const response of this.#watchers.keys()) response.end();
    // A look that is under way tells nobody.
    this.#watchers.clear();
    this.#pause.abort();
    await this.#polling;
  }

  /**
   * Where there are too many, ends the oldest stream of the client that has most of them: at once for one that has
   * fewer, else after a while, so that streams that take each other's place do not keep everybody busy.
   */
  #makePlace({ from, since }: Watcher): boolean {
    if (this.#watchers.size < mostWatchers) return true;
    const counts = new Map<string | undefined, number>();
    for (const watcher of this.#watchers.values()) {
      counts.set(watcher.from, (counts.get(watcher.from) ?? 0) + 1);
    }
    const [greediest, most] = [...counts].reduce((a, b) => (b[1] > a[1] ? b : a));
    const [response, oldest] = [...this.#watchers].find(([, watcher]) => watcher.from === greediest)!;
    const isFair = (counts.get(from) ?? 0) + 1 < most;
    if (!isFair && since - oldest.since < leastStay) return false;
    response.end();
    this.#leave(response);
    return true;
  }

  #leave(response: Response): void {
    this.#watchers.delete(response);
    if (this.#watchers.size === 0) this.#pause.abort();
  }

  async #poll(): Promise<void> {
    while (this.#watchers.size > 0 && !this.#stopped) {
      this.#pause = new AbortController();
      const { signal } = this.#pause;
      const [news, busy] = await this.#look();
      const isNew = news.id !== this.#news?.id;
      this.#news = news;
      for (const response of this.#watchers.keys()) this.#tell(response, news);
      this.#keepAlive();
      const quick = busy || isNew || performance.now() < this.#attentiveUntil;
      await sleep(quick ? every.busy : every.idle, undefined, { signal }).catch(() => {});
    }
    // Whoever comes next is told what is true then.
    this.#news = undefined;
    this.#polling = undefined;
  }

  async #look(): Promise<[News, boolean]> {
    try {
      const totals = await this.#overview.read();
      return [toNews('progress', totals), totals.running];
    } catch (err) {
      if (!(err instanceof DatabaseUnavailable)) this.#log.error({ err: reduceError(err) }, 'no progress');
      const message = err instanceof DatabaseUnavailable ? err.message : 'internal error';
      return [toNews('unavailable', { error: message }), false];
    }
  }

  /** Tells what is new to this watcher; one that does not keep up is told what is true when it does. */
  #tell(response: Response, { id, text }: News): void {
    const watcher = this.#watchers.get(response);
    if (watcher === undefined || watcher.told === id || response.writableNeedDrain) return;
    watcher.told = id;
    response.write(text);
  }

  #keepAlive(): void {
    if (performance.now() - this.#beat < heartbeat) return;
    this.#beat = performance.now();
    for (const response of this.#watchers.keys()) {
      // It has not read for as long as that: it will ask again, if it is there.
      if (response.writableNeedDrain) response.destroy();
      else response.write(':\n\n');
    }
  }
}

function toNews(event: string, data: unknown): News {
  const json = JSON.stringify(data);
  const id = createHash('sha256').update(`${event} ${json}`).digest('base64url').slice(0, 12);
  return { id, text: `event: ${event}\nid: ${id}\ndata: ${json}\n\n` };
}
