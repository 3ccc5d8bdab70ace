// Readers must not delay payments or probes, however many and however slow they are.
// @module-tag slow
import { once } from 'node:events';
import { connect as connectSocket, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { ask, post, type RunningService } from '../../../tests/support/start-service.ts';
import { connect, startApp, startProvider } from '../../../tests/support/app-and-provider.ts';

let provider: RunningService;
let app: RunningService;
beforeAll(async () => {
  provider = await startProvider();
  app = await startApp(provider, { SEED_INVOICES: '20000' });
});
beforeEach(() => post(`${app.url}/reset`));
afterAll(async () => {
  await app[Symbol.asyncDispose]();
  await provider[Symbol.asyncDispose]();
});

const cleanup: (() => void)[] = [];
afterEach(() => {
  for (const each of cleanup.splice(0)) each();
});

/** Requests a list and stops reading after the first chunk of the answer. */
async function openSlowReader(path: string): Promise<{ status: number; head: string; socket: Socket }> {
  const { hostname, port } = new URL(app.url);
  const socket = connectSocket(Number(port), hostname).on('error', () => {});
  cleanup.push(() => socket.destroy());
  socket.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
  const [chunk] = (await once(socket, 'data')) as [Buffer];
  socket.pause();
  const head = chunk.toString();
  return { status: Number(head.split(' ')[1]), head, socket };
}

/** Probes until `work` is done and expects 200 each time. Returns the longest wait in milliseconds. */
async function slowestProbe(work: Promise<unknown>): Promise<number> {
  const state = { done: false };
  void work.finally(() => (state.done = true));
  let slowest = 0;
  while (!state.done) {
    const start = performance.now();
    expect((await ask(`${app.url}/readyz`)).status).toBe(200);
    slowest = Math.max(slowest, performance.now() - start);
    await sleep(20);
  }
  return slowest;
}

test('a list that is being sent waits longer for a connection and is not cut off', async () => {
  const reader = await openSlowReader('/invoices');
  await using database = await connect(app);
  await database.query('BEGIN');
  await database.query('LOCK TABLE customers IN ACCESS EXCLUSIVE MODE');
  const others = Array.from({ length: 9 }, () => ask(`${app.url}/rest/v1/customers/1`));
  await sleep(50);
  let text = reader.head;
  reader.socket.on('data', (chunk: Buffer) => (text += chunk.toString())).resume();
  // While the list waits, the other requests take each connection that becomes free.
  await sleep(1_500);
  others.push(...Array.from({ length: 9 }, () => ask(`${app.url}/rest/v1/customers/1`)));
  await Promise.all(others);
  await database.query('ROLLBACK');
  await expect.poll(() => text.endsWith('0\r\n\r\n'), { timeout: 10_000 }).toBe(true);
});

describe('with more readers than the limit on lists', () => {
  test('pay gets 200, probes are quick, and the accepted lists arrive complete', async () => {
    const lists = ['/invoices', '/rest/v1/invoices'];
    const readers = await Promise.all(Array.from({ length: 60 }, (_, n) => openSlowReader(lists[n % 2]!)));
    const statuses = readers.map(({ status }) => status);
    expect(statuses.filter((status) => status === 200)).toHaveLength(20);
    expect(statuses.filter((status) => status === 503)).toHaveLength(40);
    const refused = readers.find(({ status }) => status === 503)!.head;
    expect(refused).toContain('Retry-After: 5\r\n');
    expect(refused).toContain('{"error":"too many lists at once, try again later"}');

    const pays = Promise.all(Array.from({ length: 10 }, () => post(`${app.url}/invoices/pay`)));
    expect(await slowestProbe(pays)).toBeLessThan(2_000);
    expect((await pays).map(({ status }) => status)).toEqual(Array.from({ length: 10 }, () => 200));
    // The requests of the page have a limit of their own.
    expect(await ask(`${app.url}/rows?limit=1`)).toMatchObject({ status: 200, body: { total: 20_000 } });

    const reader = readers.find(({ status }) => status === 200);
    let text = reader!.head;
    reader!.socket.on('data', (chunk: Buffer) => (text += chunk.toString())).resume();
    await expect.poll(() => text.endsWith('0\r\n\r\n'), { timeout: 10_000 }).toBe(true);
    expect(text.match(/"?(InvoiceId|customerId)"?/g)).toHaveLength(20_000);
  });

  test('a reader that disconnects frees its place', async () => {
    const readers = await Promise.all(Array.from({ length: 20 }, () => openSlowReader('/invoices')));
    expect((await ask(`${app.url}/invoices?limit=1`)).status).toBe(503);
    readers[0]!.socket.destroy();
    await expect.poll(async () => (await ask(`${app.url}/invoices?limit=1`)).status).toBe(200);
  });
});

test('while readers hold all their connections, pay gets 200, probes are quick, and errors say why', async () => {
  await using database = await connect(app);
  await database.query('BEGIN');
  // This lock blocks readers of customers, but not payments.
  await database.query('LOCK TABLE customers IN ACCESS EXCLUSIVE MODE');
  const read = async () => (await ask(`${app.url}/rest/v1/customers/1`)).body as { error: string };
  const readTenTimes = () => Array.from({ length: 10 }, read);
  const first = readTenTimes();
  await sleep(1_000);
  // These are first in the queue for the connections that the first ten release.
  const second = readTenTimes();
  await sleep(100);
  const paid = post(`${app.url}/invoices/pay`);
  expect(await slowestProbe(paid)).toBeLessThan(1_000);
  expect(await paid).toEqual({ status: 200, body: {} });
  const errors = await Promise.all([...first, ...second]);
  expect(errors.map(({ error }) => error)).toContain('no database connection is free, try again later');
  await database.query('ROLLBACK');
  expect((await ask(`${app.url}/rest/v1/customers/1`)).status).toBe(200);
});
