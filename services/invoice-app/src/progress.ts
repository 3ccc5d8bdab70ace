import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { DatabaseUnavailable } from '@payloop/chassis/database.ts';
import { HttpError } from '@payloop/chassis/http-error.ts';
import { reduceError, type Log } from '@payloop/chassis/log.ts';
import { error } from '@payloop/chassis/openapi.ts';
import type { Request, Response } from 'express';
import { z } from 'zod';
import type { Overview } from './overview.ts';

/** The interval between polls of Postgres, in milliseconds: while invoices are being paid, and otherwise. */
const pollInterval = { busy: 250, idle: 1_000 };
/** How long the busy interval applies after a request to pay begins or ends, in milliseconds. */
const attention = 2_000;
/** The interval between heartbeats, in milliseconds: proxies close a connection that carries nothing. */
const heartbeat = 15_000;
/** How long a browser waits to reconnect, in milliseconds. Short, as another process is already ready. */
const retry = 500;
/** The maximum number of streams: more clients than ever watch at the same time. Each costs a connection. */
export const maxWatchers = 200;
/** How old a stream must be, in milliseconds, before another of the same client or proxy may replace it. */
const minStay = 10_000;

export const describeProgress = () => ({
  get: {
    summary: 'The totals of all invoices, sent again whenever they change',
    description:
      'Server-sent events: `progress` with `Totals` as its data, and `unavailable` with an error while they ' +
      'cannot be read. The stream ends with the process, and clients reconnect.',
    responses: {
      200: {
        description: 'An endless stream.',
        content: { 'text/event-stream': z.string() },
        headers: z.object({ 'Cache-Control': z.literal('no-store'), 'X-Accel-Buffering': z.literal('no') }),
      },
      503: error(
        'Too many clients watch, or the process is shutting down.',
        z.object({ 'Retry-After': z.string() }),
      ),
    },
  },
});

/** A client of the stream. */
interface Watcher {
  /** The address of its connection: a client's, or that of a proxy in front of many. */
  from: string | undefined;
  /** When it connected, in milliseconds of `performance.now()`. */
  since: number;
  /** The id of the last event sent to it. */
  lastSent?: string;
}

/** An event for the watchers. */
interface News {
  /** The same for the same content, on every replica. */
  id: string;
  text: string;
}

/**
 * Sends the totals of all invoices as server-sent events: `progress` with the totals, and `unavailable` while the
 * totals cannot be read. While a client watches, each process polls Postgres once for all of its watchers.
 */
export class Progress {
  readonly #overview: Overview;
  readonly #log: Log;
  /** In the order of arrival. */
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

  /** Answers with a stream that ends when the client disconnects or the process stops. @throws {HttpError} 503 */
  watch(request: Request, response: Response): void {
    const watcher: Watcher = { from: request.socket.remoteAddress, since: performance.now() };
    const isStream = request.method !== 'HEAD';
    if (this.#stopped) throw new HttpError(503, 'shutting down', 5);
    if (isStream && !this.#makePlace(watcher)) {
      throw new HttpError(503, 'too many watchers, try again later', 5);
    }
    response.set({
      'Content-Type': 'text/event-stream',
      'Cache-Control': 'no-store',
      // Keeps proxies from buffering events.
      'X-Accel-Buffering': 'no',
    });
    if (!isStream) {
      response.end();
      return;
    }
    response.write(`retry: ${retry}\n\n`);
    // Every new stream gets the current event, even an unchanged one: a page that reconnects then knows it is current.
    this.#watchers.set(response, watcher);
    response.on('close', () => this.#leave(response));
    if (this.#news) this.#send(response, this.#news);
    this.#polling ??= this.#poll();
  }

  /** Polls now, and frequently for a while, as the totals are about to change. */
  attend(): void {
    this.#attentiveUntil = performance.now() + attention;
    this.#pause.abort();
  }

  /** Ends every stream. */
  async stop(): Promise<void> {
    this.#stopped = true;
    for (const response of this.#watchers.keys()) response.end();
    // A poll in flight then finds no watcher.
    this.#watchers.clear();
    this.#pause.abort();
    await this.#polling;
  }

  /**
   * Makes room for a new stream. At the maximum, ends the oldest stream of the client that has most streams. A client
   * with about as many streams is rejected until that one is old enough, so that streams do not keep replacing each
   * other.
   */
  #makePlace({ from, since }: Watcher): boolean {
    if (this.#watchers.size < maxWatchers) return true;
    const counts = new Map<string | undefined, number>();
    for (const watcher of this.#watchers.values()) {
      counts.set(watcher.from, (counts.get(watcher.from) ?? 0) + 1);
    }
    const [greediest, most] = [...counts].reduce((a, b) => (b[1] > a[1] ? b : a));
    const [response, oldest] = [...this.#watchers].find(([, watcher]) => watcher.from === greediest)!;
    const isFair = (counts.get(from) ?? 0) + 1 < most;
    if (!isFair && since - oldest.since < minStay) return false;
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
      const [news, busy] = await this.#readNews();
      const isNew = news.id !== this.#news?.id;
      this.#news = news;
      for (const response of this.#watchers.keys()) this.#send(response, news);
      this.#keepAlive();
      const quick = busy || isNew || performance.now() < this.#attentiveUntil;
      await sleep(quick ? pollInterval.busy : pollInterval.idle, undefined, { signal }).catch(() => {});
    }
    // The next watcher must not get outdated totals.
    this.#news = undefined;
    this.#polling = undefined;
  }

  async #readNews(): Promise<[News, boolean]> {
    try {
      const totals = await this.#overview.read();
      return [toNews('progress', totals), totals.running];
    } catch (err) {
      if (!(err instanceof DatabaseUnavailable))
        this.#log.error({ err: reduceError(err) }, 'the totals cannot be read');
      const message = err instanceof DatabaseUnavailable ? err.message : 'internal error';
      return [toNews('unavailable', { error: message }), false];
    }
  }

  /** Sends news that this watcher lacks. A watcher that does not keep up gets the latest once it does. */
  #send(response: Response, { id, text }: News): void {
    const watcher = this.#watchers.get(response);
    if (watcher === undefined || watcher.lastSent === id || response.writableNeedDrain) return;
    watcher.lastSent = id;
    response.write(text);
  }

  #keepAlive(): void {
    if (performance.now() - this.#beat < heartbeat) return;
    this.#beat = performance.now();
    for (const response of this.#watchers.keys()) {
      // The client has read nothing for a whole interval. If it is alive, it reconnects.
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
