import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { PostgresError } from './postgres-error.ts';
import { processOf } from './processes.ts';

/** Postgres refuses to run as root, so root runs it as another user. */
export interface User {
  uid: number;
  gid: number;
}

const dayMs = 24 * 60 * 60 * 1_000;
/** The in-memory file system of Linux. */
const memoryFileSystem = '/dev/shm';
/** The minimum free memory for keeping data there, in bytes: the tests of one run use less than a quarter. */
const memoryNeeded = 2 * 2 ** 30;

const run = promisify(execFile);

/** Finds the user that Postgres runs as when root starts it. */
export async function unprivilegedUser(): Promise<User> {
  const [uid, gid] = await Promise.all([run('id', ['-u', 'nobody']), run('id', ['-g', 'nobody'])]);
  return { uid: Number(uid.stdout), gid: Number(gid.stdout) };
}

/** Creates a folder that the server's user can enter. mkdtemp gives it a new, unpredictable name. */
export async function newHome(user: User | undefined): Promise<string> {
  const home = await fs.mkdtemp(path.join(await temporaryFolder(user), 'payloop-postgres-'));
  if (user) await fs.chmod(home, 0o711);
  return home;
}

/** Returns how many bytes files can take in memory; 0 if the system has no file system there. */
export async function roomInMemory(): Promise<number> {
  const { bavail, bsize } = await fs.statfs(memoryFileSystem).catch(() => ({ bavail: 0, bsize: 0 }));
  return Math.min(bavail * bsize, process.availableMemory());
}

/**
 * Creates a folder in memory, where databases and tables are created several times faster than on most disks. Returns
 * undefined if the system has too little room there, as many containers do. Programs stay on the disk, because some
 * systems mount this memory without the right to execute.
 */
export async function newMemoryFolder(user: User | undefined): Promise<string | undefined> {
  if ((await roomInMemory()) < memoryNeeded) return undefined;
  try {
    await removeLeftMemory();
    const folder = await fs.mkdtemp(path.join(memoryFileSystem, `payloop-postgres-${process.pid}-`));
    if (user) await fs.chmod(folder, 0o711);
    return folder;
  } catch {
    return undefined;
  }
}

/** Removes the data of killed runs from memory, a day after the start of the run. */
async function removeLeftMemory(): Promise<void> {
  for (const name of await fs.readdir(memoryFileSystem)) {
    const pid = /^payloop-postgres-(\d+)-/.exec(name)?.[1];
    if (pid === undefined || (await processOf(Number(pid)))) continue;
    const folder = path.join(memoryFileSystem, name);
    const { mtimeMs, uid } = await fs.lstat(folder);
    if (uid === process.getuid?.() && Date.now() - mtimeMs > dayMs) await fs.rm(folder, { recursive: true });
  }
}

/**
 * Returns the folder for kept data: the given one, in the clone. Root's Postgres runs as another user, who may not be
 * able to read the clone, so root gets a folder outside of it. The given folder stores its path.
 */
export async function keptHome(folder: string, user: User | undefined): Promise<string> {
  await fs.mkdir(folder, { recursive: true, mode: 0o700 });
  if (!user) return await fs.realpath(folder);
  const pointer = path.join(folder, 'location');
  const known = existsSync(pointer) ? (await fs.readFile(pointer, 'utf8')).trim() : undefined;
  if (known !== undefined && (await isRootsOwn(known))) return known;
  const home = await newHome(user);
  await fs.writeFile(pointer, `${home}\n`, { mode: 0o600 });
  return home;
}

/** Whether the folder still exists and belongs to root: another user may have replaced it, also by a symlink. */
async function isRootsOwn(folder: string): Promise<boolean> {
  try {
    const stat = await fs.lstat(folder);
    return stat.isDirectory() && stat.uid === 0 && (stat.mode & 0o022) === 0;
  } catch {
    return false;
  }
}

/** Finds a temporary folder that the user can enter: root's own is private on macOS and with some TMPDIR. */
async function temporaryFolder(user: User | undefined): Promise<string> {
  const candidates = [os.tmpdir(), '/tmp', '/var/tmp'].filter((folder) => existsSync(folder));
  for (const candidate of candidates) {
    const folder = await fs.realpath(candidate);
    if (!user || (await isTraversable(folder))) return folder;
  }
  throw new PostgresError(
    `Postgres cannot run as root, and other users cannot enter ${candidates.join(' or ')}. Set TMPDIR to a folder that they can enter`,
  );
}

async function isTraversable(folder: string): Promise<boolean> {
  if (((await fs.stat(folder)).mode & 0o001) === 0) return false;
  const parent = path.dirname(folder);
  return parent === folder || (await isTraversable(parent));
}

/** Gives the file to the user that Postgres runs as. */
export async function own(file: string, user: User | undefined): Promise<void> {
  if (user) await fs.chown(file, user.uid, user.gid);
}

/**
 * Returns the options of spawn for this user. `| 0` turns 4294967294, the uid of macOS' nobody, into the -2 that spawn
 * accepts.
 */
export function asUser(user: User | undefined): { uid?: number; gid?: number } {
  return user ? { uid: user.uid | 0, gid: user.gid | 0 } : {};
}
