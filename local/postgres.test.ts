// @module-tag slow
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { Client } from 'pg';
import { afterAll, afterEach, beforeAll, expect, onTestFinished, test } from 'vitest';
import { freePort } from './ports.ts';
import { roomInMemory } from './postgres-home.ts';
import { startPostgres, type Postgres } from './postgres.ts';

let temporary: string;
let folder: string;
const started: Postgres[] = [];

// For root, the data are below the temporary folder, so the test uses a temporary folder of its own.
beforeAll(async () => {
  temporary = await fs.mkdtemp(path.join(os.tmpdir(), 'payloop-test-'));
  await fs.chmod(temporary, 0o711);
  process.env.TMPDIR = temporary;
  folder = path.join(temporary, 'kept');
});
afterEach(async () => {
  await Promise.all(started.splice(0).map(({ stop }) => stop()));
});
afterAll(() => fs.rm(temporary, { recursive: true, force: true }));

async function start(): Promise<Postgres> {
  const postgres = await startPostgres({ folder, port: await freePort(), databases: ['shop', 'bank'] });
  started.push(postgres);
  return postgres;
}

async function query(url: string, text: string): Promise<Record<string, unknown>[]> {
  const client = new Client({ connectionString: url });
  await client.connect();
  try {
    return (await client.query<Record<string, unknown>>(text)).rows;
  } finally {
    await client.end();
  }
}

test('keeps data; only the owner can connect to a database, with a password, from this machine', async () => {
  const first = await start();
  await query(first.url('shop'), 'CREATE TABLE kept AS SELECT 7 AS value');
  await first.stop();

  const second = await start();
  expect(await query(second.url('shop'), 'SELECT value FROM kept')).toEqual([{ value: 7 }]);
  expect(await query(second.url('shop'), 'SHOW listen_addresses')).toEqual([
    { listen_addresses: '127.0.0.1' },
  ]);
  expect(await query(second.url('shop'), 'SHOW fsync')).toEqual([{ fsync: 'on' }]);

  const foreign = new URL(second.url('bank'));
  foreign.pathname = '/shop';
  await expect(query(foreign.href, 'SELECT 1')).rejects.toThrow(/permission denied for database "shop"/);
  const guessed = new URL(second.url('shop'));
  guessed.password = 'shop';
  await expect(query(guessed.href, 'SELECT 1')).rejects.toThrow(/password authentication failed/);
  expect((await fs.stat(path.join(second.home, 'password'))).mode & 0o777).toBe(0o600);
});

test('without a folder it leaves nothing behind', async () => {
  const postgres = await startPostgres({ databases: [] });
  expect(await query(postgres.url('postgres'), 'SHOW fsync')).toEqual([{ fsync: 'off' }]);
  const [data] = await query(postgres.url('postgres'), 'SHOW data_directory');
  const memory = path.dirname(String(data!.data_directory));
  expect(existsSync(memory)).toBe(true);
  await postgres.stop();
  expect(existsSync(memory)).toBe(false);
  expect(existsSync(postgres.home)).toBe(false);
});

// Twice the room that it needs: other test runs may take some.
test.runIf((await roomInMemory()) > 4 * 2 ** 30)(
  'temporary data live in memory; a start removes what killed runs left a day ago',
  async () => {
    const owned = `payloop-postgres-${process.pid}-`;
    const left = await Promise.all(['999999999', String(process.pid)].map((pid) => leave(pid, 25)));
    const recent = await leave('999999999', 1);
    const postgres = await startPostgres({ databases: [] });
    started.push(postgres);
    const [data] = await query(postgres.url('postgres'), 'SHOW data_directory');
    expect(data!.data_directory).toMatch(new RegExp(`^/dev/shm/${owned}`));
    expect([...left, recent].map(existsSync)).toEqual([false, true, true]);
  },
);

/** Creates a folder as a run with this pid leaves it, so many hours ago. */
async function leave(pid: string, hours: number): Promise<string> {
  const left = await fs.mkdtemp(`/dev/shm/payloop-postgres-${pid}-`);
  onTestFinished(() => fs.rm(left, { recursive: true, force: true }));
  const time = Date.now() / 1_000 - hours * 3_600;
  await fs.utimes(left, time, time);
  return left;
}

test('refuses while the parent of a running Postgres lives, and stops one whose parent is gone', async () => {
  const first = await start();
  await expect(start()).rejects.toThrow(`Postgres already runs on`);
  expect(await query(first.url('shop'), 'SELECT 1 AS one')).toEqual([{ one: 1 }]);

  await fs.writeFile(path.join(first.home, 'owner'), '1\n');
  const second = await start();
  await first.ended;
  expect(await query(second.url('shop'), 'SELECT 1 AS one')).toEqual([{ one: 1 }]);
});

test('starts, and leaves another process alone that has the pid of an earlier Postgres', async () => {
  const { home, stop } = await start();
  await stop();
  const stranger = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)']);
  try {
    const data = path.join(home, (await fs.readdir(home)).find((name) => /^data-\d+$/.test(name)) ?? '');
    await fs.writeFile(path.join(data, 'postmaster.pid'), `${stranger.pid}\n${data}\n`);
    await start();
    expect(stranger.exitCode ?? stranger.signalCode).toBeNull();
  } finally {
    stranger.kill();
  }
});

test('reports why Postgres does not start, in its own words', async () => {
  const { home, stop } = await start();
  await stop();
  const data = path.join(home, (await fs.readdir(home)).find((name) => /^data-\d+$/.test(name)) ?? '');
  await fs.appendFile(path.join(data, 'postgresql.auto.conf'), 'nonsense = 1\n');
  await expect(start()).rejects.toThrow(/^Postgres exited at its start, its last lines:\n.*nonsense/);
  await fs.rm(home, { recursive: true });
});

test.runIf(process.getuid?.() === 0)(
  'as root, it does not use data that another user put in their place',
  { timeout: 90_000 },
  async () => {
    const elsewhere = path.join(temporary, 'elsewhere');
    const { home, stop } = await start();
    await stop();
    await fs.rename(home, elsewhere);
    await fs.symlink(elsewhere, home);
    expect((await start()).home).not.toBe(home);
  },
);
