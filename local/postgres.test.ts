// @module-tag slow
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { Client } from 'pg';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { freePort } from './ports.ts';
import { startPostgres, type Postgres } from './postgres.ts';

let temporary: string;
let folder: string;
const started: Postgres[] = [];

// As root, Postgres' data go below the temporary folder, which this makes one of the test's own.
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

test('data stay; a database is its owner’s alone, behind a password, on this machine only', async () => {
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

test('one without a folder leaves nothing', async () => {
  const postgres = await startPostgres({ databases: [] });
  expect(await query(postgres.url('postgres'), 'SHOW fsync')).toEqual([{ fsync: 'off' }]);
  await postgres.stop();
  expect(existsSync(postgres.home)).toBe(false);
});

test('one that still has its parent is left alone, one that has lost it is ended', async () => {
  const first = await start();
  await expect(start()).rejects.toThrow(`Postgres already runs on`);
  expect(await query(first.url('shop'), 'SELECT 1 AS one')).toEqual([{ one: 1 }]);

  await fs.writeFile(path.join(first.home, 'owner'), '1\n');
  const second = await start();
  await first.ended;
  expect(await query(second.url('shop'), 'SELECT 1 AS one')).toEqual([{ one: 1 }]);
});

test('a process that has the number of a Postgres long gone is no obstacle, and not harmed', async () => {
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

test('why it does not start is told in its own words', async () => {
  const { home, stop } = await start();
  await stop();
  const data = path.join(home, (await fs.readdir(home)).find((name) => /^data-\d+$/.test(name)) ?? '');
  await fs.appendFile(path.join(data, 'postgresql.auto.conf'), 'nonsense = 1\n');
  await expect(start()).rejects.toThrow(/^Postgres ended at its start, its last lines:\n.*nonsense/);
  await fs.rm(home, { recursive: true });
});

test.runIf(process.getuid?.() === 0)(
  'as root: what somebody else puts in the place of the data is not used',
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
