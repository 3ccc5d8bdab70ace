// Runs `make up MODE=local` in a copy of the tree, on free ports.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, copyFile, cp, mkdir, mkdtemp, readdir, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { until } from '../../tests/cluster/cluster.ts';
import { freePort } from '../../local/ports.ts';
import { withoutMake } from '../../tests/support/make.ts';

const root = resolve(import.meta.dirname, '../..');

export interface Local {
  folder: string;
  url: string;
  log: () => string;
  stop: () => Promise<void>;
}

/**
 * Starts `make up MODE=local` in a copy of the tree, and waits until the payment test has passed.
 * @param interrupted stops it if it rejects meanwhile
 */
export async function startLocal(interrupted: Promise<never>): Promise<Local> {
  const temporary = await mkdtemp(join(tmpdir(), 'payloop-'));
  // Postgres does not run as root, and has to reach its files in this folder.
  await chmod(temporary, 0o711);
  const folder = join(temporary, 'tree');
  await copyTree(folder);
  const port = await freePort();
  const env: NodeJS.ProcessEnv = {
    ...withoutMake(process.env),
    TMPDIR: temporary,
    MODE: 'local',
    // Prints every line of the payment test.
    LOG_LEVEL: 'info',
    INVOICE_APP_PORT: `${port}`,
    PAYMENT_PROVIDER_PORT: `${await freePort()}`,
    POSTGRES_PORT: `${await freePort()}`,
  };
  const make = spawn('make', ['up'], { cwd: folder, env, stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  let log = '';
  for (const stream of [make.stdout, make.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => (log += text));
  }
  const stop = async () => {
    if (make.exitCode === null && make.signalCode === null) {
      const closed = once(make, 'close');
      process.kill(-make.pid!, 'SIGTERM');
      await closed;
    }
    await rm(temporary, { recursive: true });
  };
  try {
    const passed = until('make up passes the payment test', 100, () => / ok 8 /.test(log));
    await Promise.race([passed, interrupted]);
  } catch (error) {
    await stop();
    throw new Error(`make up did not pass the payment test. It printed:\n${log}`, { cause: error });
  }
  return { folder, url: `http://127.0.0.1:${port}`, log: () => log, stop };
}

/** Copies the tree. The copy links to this tree's packages, and to its own copy of the chassis. */
async function copyTree(folder: string): Promise<void> {
  const modules = join(folder, 'node_modules');
  await mkdir(join(modules, '@payloop'), { recursive: true });
  for (const name of [
    'services',
    'libraries',
    'scripts',
    'kustomize',
    'local',
    'Makefile',
    'test.sh',
    'package.json',
    'package-lock.json',
  ]) {
    await cp(join(root, name), join(folder, name), { recursive: true });
  }
  for (const name of await readdir(join(root, 'node_modules'))) {
    if (!['@payloop', '.package-lock.installed.json'].includes(name)) {
      await symlink(join(root, 'node_modules', name), join(modules, name));
    }
  }
  await symlink('../../libraries/chassis', join(modules, '@payloop/chassis'));
  await copyFile(join(folder, 'package-lock.json'), join(modules, '.package-lock.installed.json'));
}
