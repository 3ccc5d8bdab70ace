import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { DatabaseUnavailable } from '@payloop/chassis/database.ts';
import { createLog } from '@payloop/chassis/log.ts';
import express, { type ErrorRequestHandler } from 'express';
import type { AddressInfo } from 'node:net';
import { afterEach, expect, test, vi } from 'vitest';
import { EventStream } from '../../../tests/support/events.ts';
import type { Overview, Totals } from './overview.ts';
import { Progress } from './progress.ts';

const cleanup: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const each of cleanup.splice(0)) await each();
});

/** Starts a server with totals that the test sets, and counts how often they are polled. */
async function start() {
  const source = { totals: { running: false, sums: [] } as Totals | Promise<Totals> | Error, polls: 0 };
  const overview = {
    read: async () => {
      source.polls += 1;
      if (source.totals instanceof Error) throw source.totals;
      return source.totals;
    },
  } as unknown as Overview;
  const progress = new Progress(overview, createLog('test', 'silent'));
  /** Counts writes after the end of a stream. Such a write crashes the process. */
  let late = 0;
  const refuse: ErrorRequestHandler = (
    error: { status: number; retryAfter: number },
    _request,
    response,
    _next,
  ) => {
    response.status(error.status).set('Retry-After', `${error.retryAfter}`).end();
  };
  const server = express()
    .get('/', (request, response) => {
      const from = request.get('X-From');
      if (from) Object.defineProperty(request.socket, 'remoteAddress', { value: from, configurable: true });
      const write = response.write.bind(response);
      response.write = (text: string) => {
        if (response.writableEnded) late += 1;
        return write(text);
      };
      progress.watch(request, response);
    })
    .use(refuse)
    .listen(0, '127.0.0.1');
  await once(server, 'listening');
  cleanup.push(async () => {
    await progress.stop();
    server.closeAllConnections();
    server.close();
  });
  return {
    source,
    progress,
    writtenLate: () => late,
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
  };
}

test('one poll serves all watchers, and there is none without watchers', async () => {
  const { source, url } = await start();
  expect(source.polls).toBe(0);
  const streams = await Promise.all(Array.from({ length: 20 }, () => EventStream.open(url)));
  await Promise.all(streams.map((stream) => stream.next()));
  await sleep(2_500);
  expect(source.polls).toBeGreaterThan(1);
  expect(source.polls).toBeLessThan(8);
  for (const stream of streams) await stream[Symbol.asyncDispose]();
  await sleep(300);
  const { polls } = source;
  await sleep(1_500);
  expect(source.polls).toBe(polls);
});

test('unchanged totals are sent once to each stream, even if the client already has them', async () => {
  const { source, url } = await start();
  await using stream = await EventStream.open(url);
  const first = await stream.next();
  await using again = await EventStream.open(url, { 'Last-Event-ID': first!.id });
  expect(await again.next()).toEqual(first);
  await sleep(2_000);
  source.totals = { running: true, sums: [] };
  expect((await again.next())!.data).toEqual({ running: true, sums: [] });
  expect(stream.seen.split('event:')).toHaveLength(2);
  expect((await stream.next())!.data).toEqual({ running: true, sums: [] });
});

test('it polls several times a second during a run, and at once when a run is requested', async () => {
  const { source, progress, url } = await start();
  await using stream = await EventStream.open(url);
  await stream.next();
  await sleep(700);
  const asked = performance.now();
  source.totals = { running: true, sums: [] };
  progress.attend();
  await stream.next();
  expect(performance.now() - asked).toBeLessThan(200);
  // Polls are also frequent for a while after `attend`.
  await sleep(2_500);
  const { polls } = source;
  await sleep(1_500);
  expect(source.polls - polls).toBeGreaterThanOrEqual(4);
});

test('watchers learn that the database is unavailable, and that it is back', async () => {
  const { source, url } = await start();
  await using stream = await EventStream.open(url);
  expect(await stream.next()).toMatchObject({ event: 'progress' });
  source.totals = new DatabaseUnavailable();
  expect(await stream.next()).toMatchObject({
    event: 'unavailable',
    data: { error: 'database unavailable' },
  });
  source.totals = { running: false, sums: [] };
  expect(await stream.next()).toMatchObject({ event: 'progress' });
});

test('at most 200 may watch, and one that disconnects frees its place', async () => {
  const { url } = await start();
  const streams = await Promise.all(Array.from({ length: 200 }, () => EventStream.open(url)));
  const refused = await fetch(url);
  expect([refused.status, refused.headers.get('Retry-After')]).toEqual([503, '5']);
  const now = performance.now.bind(performance);
  const clock = vi.spyOn(performance, 'now').mockImplementation(() => now() + 10_000);
  const head = await fetch(url, { method: 'HEAD' }).finally(() => clock.mockRestore());
  expect(head.status).toBe(200);
  // HEAD opens no stream, so it takes the place of none.
  expect((await fetch(url)).status).toBe(503);
  await streams[0]![Symbol.asyncDispose]();
  await sleep(100);
  await using another = await EventStream.open(url);
  expect(await another.next()).toMatchObject({ event: 'progress' });
  for (const stream of streams) await stream[Symbol.asyncDispose]();
});

test('a client with fewer streams replaces the oldest stream of the client with the most', async () => {
  const { url } = await start();
  await using other = await EventStream.open(url, { 'X-From': 'c' });
  const streams: EventStream[] = [];
  for (let n = 0; n < 199; n += 1) streams.push(await EventStream.open(url, { 'X-From': 'a' }));
  const others: EventStream[] = [];
  for (let n = 0; n < 3; n += 1) others.push(await EventStream.open(url, { 'X-From': 'b' }));
  for (const stream of others) expect(await stream.next()).toMatchObject({ event: 'progress' });
  // Only the three oldest streams of that client are closed.
  for (const stream of streams.slice(0, 3)) {
    await stream.next();
    expect(await stream.next()).toBeUndefined();
  }
  expect(await streams[3]!.next()).toMatchObject({ event: 'progress' });
  expect(await other.next()).toMatchObject({ event: 'progress' });
  expect((await fetch(url, { headers: { 'X-From': 'a' } })).status).toBe(503);
  for (const stream of [...streams, ...others]) await stream[Symbol.asyncDispose]();
});

test('among the streams of one address, which may be a proxy, the oldest is replaced after ten seconds', async () => {
  const { url } = await start();
  const now = performance.now.bind(performance);
  const streams: EventStream[] = [];
  for (let n = 0; n < 200; n += 1) streams.push(await EventStream.open(url));
  expect((await fetch(url)).status).toBe(503);
  const clock = vi.spyOn(performance, 'now').mockImplementation(() => now() + 10_000);
  try {
    await using another = await EventStream.open(url);
    expect(await another.next()).toMatchObject({ event: 'progress' });
    await streams[0]!.next();
    expect(await streams[0]!.next()).toBeUndefined();
  } finally {
    clock.mockRestore();
  }
  for (const stream of streams) await stream[Symbol.asyncDispose]();
});

test('stop closes every stream', async () => {
  const { progress, url } = await start();
  await using stream = await EventStream.open(url);
  await stream.next();
  await progress.stop();
  expect(await stream.next()).toBeUndefined();
  expect((await fetch(url)).status).toBe(503);
});

test('a poll in flight during the stop sends nothing', async () => {
  const { source, progress, url, writtenLate } = await start();
  const poll = Promise.withResolvers<Totals>();
  source.totals = poll.promise;
  await using stream = await EventStream.open(url);
  const stopped = progress.stop();
  poll.resolve({ running: false, sums: [] });
  await stopped;
  expect(await stream.next()).toBeUndefined();
  expect(writtenLate()).toBe(0);
});
