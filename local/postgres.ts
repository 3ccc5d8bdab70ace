import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { Client, escapeIdentifier, escapeLiteral } from 'pg';
import { freePort, whyTaken } from './ports.ts';
import { PostgresError } from './postgres-error.ts';
import {
  asUser,
  keptHome,
  newHome,
  newMemoryFolder,
  own,
  unprivilegedUser,
  type User,
} from './postgres-home.ts';
import { install } from './postgres-install.ts';
import { processOf, signal } from './processes.ts';

export interface Options {
  /**
   * Keeps the data here between runs. Without a folder, the data live in memory if there is room, without fsync, and
   * stop() removes them.
   */
  folder?: string;
  /** The port on 127.0.0.1; default: a free one. */
  port?: number;
  /** Creates each missing database, owned by a role of the same name. No other role can connect to it. */
  databases: string[];
  /** Writes temporary data to the disk with fsync, as kept data always are. */
  durable?: boolean;
}

export interface Postgres {
  port: number;
  pid: number;
  /** The folder that holds the data and the log of this run. */
  home: string;
  log: string;
  /** Returns the URL of a database, as its owner; for `postgres`, as the superuser. */
  url: (database: string) => string;
  /** Settles once every process of this Postgres has exited. */
  stop: () => Promise<void>;
  /** Resolves when Postgres has exited, on its own or after stop(). */
  ended: Promise<void>;
}

const READY_MS = 30_000;
const FAST_SHUTDOWN_MS = 10_000;
const IMMEDIATE_SHUTDOWN_MS = 5_000;

/** Settings for temporary data: no crash safety, and a write-ahead log that does not fill the memory. */
const disposableSettings = ['fsync=off', 'full_page_writes=off', 'max_wal_size=128MB'];

const run = promisify(execFile);

/**
 * Starts Postgres, with the binaries of the npm package, and creates the databases.
 * @throws {PostgresError} when it cannot start, with the reason
 */
export async function startPostgres({
  folder,
  port,
  databases,
  durable = false,
}: Options): Promise<Postgres> {
  const user = process.getuid?.() === 0 ? await unprivilegedUser() : undefined;
  const home = folder === undefined ? await newHome(user) : await keptHome(folder, user);
  const memory = folder === undefined && !durable ? await newMemoryFolder(user) : undefined;
  const removeData = async () => {
    if (folder !== undefined) return;
    for (const each of [home, memory]) if (each) await fs.rm(each, { recursive: true, force: true });
  };
  try {
    const bin = await install(home);
    const password = await ensurePassword(home, user);
    const data = await ensureData({ home, folder: memory ?? home, bin, user });
    await endLeftover(home, data);
    const settings = folder === undefined && !durable ? disposableSettings : [];
    const taken = port === undefined ? undefined : await whyTaken('POSTGRES_PORT', port);
    if (taken) throw new PostgresError(taken);
    const chosenPort = port ?? (await freePort());
    const server = await launch({ home, bin, data, user, port: chosenPort, settings });
    const url = (database: string) =>
      `postgres://${encodeURIComponent(database)}:${password}@127.0.0.1:${chosenPort}/${encodeURIComponent(database)}`;
    const stop = async () => {
      await shutDown(server.child);
      await removeData();
    };
    try {
      await ready(url('postgres'), server, home);
      await ensureDatabases(url('postgres'), databases, password);
    } catch (error) {
      await stop();
      throw error;
    }
    return {
      port: chosenPort,
      pid: server.child.pid!,
      home,
      log: logFile(home),
      url,
      stop,
      ended: server.ended,
    };
  } catch (error) {
    await removeData();
    throw error;
  }
}

async function ensurePassword(home: string, user: User | undefined): Promise<string> {
  const file = path.join(home, 'password');
  if (!existsSync(file)) {
    await fs.writeFile(file, randomBytes(24).toString('hex'), { mode: 0o600, flag: 'wx' });
    await own(file, user);
  }
  return (await fs.readFile(file, 'utf8')).trim();
}

async function ensureData({
  home,
  folder,
  bin,
  user,
}: {
  home: string;
  folder: string;
  bin: string;
  user: User | undefined;
}): Promise<string> {
  const { stdout } = await run(path.join(bin, 'postgres'), ['--version'], { cwd: home, ...asUser(user) });
  const major = /\d+/.exec(stdout)?.[0] ?? 'unknown';
  // Major versions cannot read each other's files, so each has its own folder.
  const data = path.join(folder, `data-${major}`);
  if (existsSync(data)) return data;
  // Renames the folder once it is complete, so that a killed initdb leaves no data folder.
  const partial = `${data}.partial`;
  await fs.rm(partial, { recursive: true, force: true });
  await fs.mkdir(partial, { mode: 0o700 });
  await own(partial, user);
  const args = [
    '--pgdata',
    partial,
    '--username=postgres',
    '--auth=scram-sha-256',
    '--no-sync',
    '--no-instructions',
  ];
  args.push(`--pwfile=${path.join(home, 'password')}`, '--encoding=UTF8', '--locale=C');
  try {
    await run(path.join(bin, 'initdb'), args, { cwd: home, ...asUser(user) });
  } catch (error) {
    const output = error instanceof Error && 'stderr' in error ? error.stderr : error;
    throw new PostgresError(`initdb failed, its last lines:\n${lastLines(String(output))}`, { cause: error });
  }
  await fs.rename(partial, data);
  return data;
}

/**
 * Stops a Postgres that uses these data and whose parent was killed. Throws if its parent still runs, because it then
 * belongs to another run. Leaves a process alone that only has the same pid.
 */
async function endLeftover(home: string, data: string): Promise<void> {
  const pidFile = path.join(data, 'postmaster.pid');
  if (!existsSync(pidFile)) return;
  const pid = Number((await fs.readFile(pidFile, 'utf8')).split('\n')[0]);
  if (!Number.isInteger(pid) || pid <= 1) return;
  const found = await processOf(pid);
  if (!found) return;
  if (!found.command.includes(data)) {
    // Postgres refuses to start if a process with the pid in this file runs.
    await fs.rm(pidFile, { force: true });
    return;
  }
  const owner = Number(await fs.readFile(path.join(home, 'owner'), 'utf8').catch(() => ''));
  if (found.parent === owner) {
    throw new PostgresError(
      `Postgres already runs on ${data} (pid ${pid}), started by process ${owner}. Stop that process first`,
    );
  }
  for (const [name, bound] of shutdownSteps) {
    signal(pid, name);
    for (const until = Date.now() + bound; Date.now() < until; await delay(50)) {
      if (!(await processOf(pid))) return;
    }
  }
  throw new PostgresError(`Postgres of an earlier run (pid ${pid}, on ${data}) did not exit. Kill it`);
}

interface Server {
  child: ChildProcess;
  ended: Promise<void>;
}

async function launch({
  home,
  bin,
  data,
  user,
  port,
  settings,
}: {
  home: string;
  bin: string;
  data: string;
  user: User | undefined;
  port: number;
  settings: string[];
}): Promise<Server> {
  const all = [
    'listen_addresses=127.0.0.1',
    'unix_socket_directories=',
    `port=${port}`,
    // SCRAM's iterations protect weak passwords, but slow down each connection. These passwords are random.
    'scram_iterations=1',
    ...settings,
  ];
  const log = await fs.open(logFile(home), 'w', 0o600);
  try {
    // Runs in its own process group, so that Ctrl-C stops it only through stop(), after its clients.
    const child = spawn(path.join(bin, 'postgres'), ['-D', data, ...all.flatMap((each) => ['-c', each])], {
      cwd: home,
      detached: true,
      stdio: ['ignore', log.fd, log.fd],
      ...asUser(user),
    });
    const ended = new Promise<void>((resolve) => {
      child.once('exit', () => resolve()).once('error', () => resolve());
    });
    await new Promise<void>((resolve, reject) => {
      child.once('spawn', resolve).once('error', (error) => {
        reject(new PostgresError(`Postgres could not be started: ${error.message}`));
      });
    });
    await fs.writeFile(path.join(home, 'owner'), `${process.pid}\n`);
    return { child, ended };
  } finally {
    await log.close();
  }
}

async function ready(url: string, { child }: Server, home: string): Promise<void> {
  for (const until = Date.now() + READY_MS; ; await delay(50)) {
    if (hasEnded(child) || Date.now() > until) {
      const log = await fs.readFile(logFile(home), 'utf8');
      const what = hasEnded(child) ? 'exited at its start' : `was not ready within ${READY_MS / 1000} s`;
      throw new PostgresError(`Postgres ${what}, its last lines:\n${lastLines(log)}`);
    }
    const client = new Client({ connectionString: url, connectionTimeoutMillis: 5_000 });
    client.on('error', () => undefined);
    try {
      await client.connect();
      return;
    } catch {
      // Postgres does not accept connections yet. Its log has the reason.
    } finally {
      await client.end().catch(() => undefined);
    }
  }
}

async function ensureDatabases(url: string, databases: string[], password: string): Promise<void> {
  const client = new Client({ connectionString: url });
  await client.connect();
  try {
    for (const database of databases) {
      const name = escapeIdentifier(database);
      const role = await client.query('SELECT FROM pg_roles WHERE rolname = $1', [database]);
      if (role.rowCount === 0) await client.query(`CREATE ROLE ${name}`);
      await client.query(`ALTER ROLE ${name} LOGIN PASSWORD ${escapeLiteral(password)}`);
      const existing = await client.query('SELECT FROM pg_database WHERE datname = $1', [database]);
      if (existing.rowCount === 0) await client.query(`CREATE DATABASE ${name} OWNER ${name}`);
      await client.query(`REVOKE CONNECT ON DATABASE ${name} FROM PUBLIC`);
    }
  } finally {
    await client.end();
  }
}

/** Fast shutdown closes sessions. Immediate shutdown relies on crash recovery. SIGKILL is the last resort. */
const shutdownSteps: [NodeJS.Signals, number][] = [
  ['SIGINT', FAST_SHUTDOWN_MS],
  ['SIGQUIT', IMMEDIATE_SHUTDOWN_MS],
  ['SIGKILL', IMMEDIATE_SHUTDOWN_MS],
];

async function shutDown(child: ChildProcess): Promise<void> {
  for (const [name, bound] of shutdownSteps) {
    if (hasEnded(child)) return;
    const exited = new Promise<boolean>((resolve) => {
      child.once('exit', () => resolve(true));
    });
    child.kill(name);
    const timer = new AbortController();
    const timedOut = delay(bound, false, { signal: timer.signal }).catch(() => false);
    if (await Promise.race([exited, timedOut])) {
      timer.abort();
      return;
    }
  }
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

function logFile(home: string): string {
  return path.join(home, 'postgres.log');
}

function lastLines(text: string): string {
  const lines = text.split('\n').filter((line) => line.trim() !== '');
  return lines
    .slice(-5)
    .map((line) => `  ${line}`)
    .join('\n');
}
