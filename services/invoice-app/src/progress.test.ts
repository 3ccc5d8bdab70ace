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

/** A server whose totals are what the test says, and counts how often they were looked at. */
async function start() {
  const told = { totals: { running: false, sums: [] } as Totals | Promise<Totals> | Error, looks: 0 };
  const overview = {
    read: async () => {
      told.looks += 1;
      if (told.totals instanceof Error) throw told.totals;
      return told.totals;
    },
  } as unknown as Overview;
  const progress = new Progress(overview, createLog('test', 'silent'));
  /** What is written after a stream's end ends the process. */
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
    told,
    progress,
    writtenLate: () => late,
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
  };
}

test('one look serves all who watch, and nobody looks for nobody', async () => {
  const { told, url } = await start();
  expect(told.looks).toBe(0);
  const streams = await Promise.all(Array.from({ length: 20 }, () => EventStream.open(url)));
  await Promise.all(streams.map((stream) => stream.next()));
  await sleep(2_500);
  expect(told.looks).toBeGreaterThan(1);
  expect(told.looks).toBeLessThan(8);
  for (const stream of streams) await stream[Symbol.asyncDispose]();
  await sleep(300);
  const { looks } = told;
  await sleep(1_500);
  expect(told.looks).toBe(looks);
});

test('what has not changed is not told again; who comes back is told once, whatever it knew', async () => {
  const { told, url } = await start();
  await using stream = await EventStream.open(url);
  const first = await stream.next();
  await using again = await EventStream.open(url, { 'Last-Event-ID': first!.id });
  expect(await again.next()).toEqual(first);
  await sleep(2_000);
  told.totals = { running: true, sums: [] };
  expect((await again.next())!.data).toEqual({ running: true, sums: [] });
  expect(stream.seen.split('event:')).toHaveLength(2);
  expect((await stream.next())!.data).toEqual({ running: true, sums: [] });
});

test('it looks a few times a second while a run goes on, and at once where one is asked for', async () => {
  const { told, progress, url } = await start();
  await using stream = await EventStream.open(url);
  await stream.next();
  await sleep(700);
  const asked = performance.now();
  told.totals = { running: true, sums: [] };
  progress.attend();
  await stream.next();
  expect(performance.now() - asked).toBeLessThan(200);
  const { looks } = told;
  await sleep(2_000);
  expect(told.looks - looks).toBeGreaterThanOrEqual(4);
});

test('a database that is away is said, and its return', async () => {
  const { told, url } = await start();
  await using stream = await EventStream.open(url);
  expect(await stream.next()).toMatchObject({ event: 'progress' });
  told.totals = new DatabaseUnavailable();
  expect(await stream.next()).toMatchObject({
    event: 'unavailable',
    data: { error: 'database unavailable' },
  });
  told.totals = { running: false, sums: [] };
  expect(await stream.next()).toMatchObject({ event: 'progress' });
});

test('only so many may watch, and one that goes makes place', async () => {
  const { url } = await start();
  const streams = await Promise.all(Array.from({ length: 200 }, () => EventStream.open(url)));
  const refused = await fetch(url);
  expect([refused.status, refused.headers.get('Retry-After')]).toEqual([503, '5']);
  await streams[0]![Symbol.asyncDispose]();
  await sleep(100);
  await using another = await EventStream.open(url);
  expect(await another.next()).toMatchObject({ event: 'progress' });
  for (const stream of streams) await stream[Symbol.asyncDispose]();
});

test('a client that has fewer streams takes the place of the oldest of the one that has most', async () => {
  const { url } = await start();
  await using other = await EventStream.open(url, { 'X-From': 'c' });
  const streams: EventStream[] = [];
  for (let n = 0; n < 199; n += 1) streams.push(await EventStream.open(url, { 'X-From': 'a' }));
  const others: EventStream[] = [];
  for (let n = 0; n < 3; n += 1) others.push(await EventStream.open(url, { 'X-From': 'b' }));
  for (const stream of others) expect(await stream.next()).toMatchObject({ event: 'progress' });
  // Those that were there first are gone, and nobody else is.
  for (const stream of streams.slice(0, 3)) {
    await stream.next();
    expect(await stream.next()).toBeUndefined();
  }
  expect(await streams[3]!.next()).toMatchObject({ event: 'progress' });
  expect(await other.next()).toMatchObject({ event: 'progress' });
  expect((await fetch(url, { headers: { 'X-From': 'a' } })).status).toBe(503);
  for (const stream of [...streams, ...others]) await stream[Symbol.asyncDispose]();
});

test('of one address, which may be a proxy’s, the oldest makes place once it has had its time', async () => {
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

test('a stop ends every stream', async () => {
  const { progress, url } = await start();
  await using stream = await EventStream.open(url);
  await stream.next();
  await progress.stop();
  expect(await stream.next()).toBeUndefined();
  expect((await fetch(url)).status).toBe(503);
});

test('a look that is under way at the stop tells nobody', async () => {
  const { told, progress, url, writtenLate } = await start();
  const look = Promise.withResolvers<Totals>();
  told.totals = look.promise;
  await using stream = await EventStream.open(url);
  const stopped = progress.stop();
  look.resolve({ running: false, sums: [] });
  await stopped;
  expect(await stream.next()).toBeUndefined();
  expect(writtenLate()).toBe(0);
});
