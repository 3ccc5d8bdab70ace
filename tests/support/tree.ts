import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { paying } from './paying.ts';

const root = path.resolve(import.meta.dirname, '../..');

/**
 * Copies this tree, including uncommitted changes, to a temporary folder. The copy has one commit with all files, and
 * the installed packages.
 * @returns the folder, inside one that an unprivileged user can traverse: Postgres does not run as root
 */
export async function copyTree(): Promise<string> {
  const temporary = await fs.realpath(await fs.mkdtemp(path.join(tmpdir(), 'payloop-tree-')));
  await fs.chmod(temporary, 0o711);
  const copy = path.join(temporary, 'copy');
  const listed = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
    cwd: root,
    encoding: 'utf8',
  });
  for (const file of listed.split('\0').filter(Boolean)) {
    // Git also lists deleted files until the deletion is staged.
    await fs.cp(path.join(root, file), path.join(copy, file)).catch(() => {});
  }
  await removeAddedServices(copy);
  await linkPackages(copy);
  const identity = ['-c', 'user.name=A', '-c', 'user.email=a@example.com'];
  for (const args of [
    ['init', '--quiet'],
    ['add', '.'],
    [...identity, 'commit', '--quiet', '--message=base'],
  ]) {
    execFileSync('git', args, { cwd: copy });
  }
  return copy;
}

/** Yields the project's own text files, not those installed or built. Works without git, in a copy of the tree. */
export function* projectFiles(folder = root): Generator<string> {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (['node_modules', 'dist', 'release.yaml', '.git', '.payloop'].includes(entry.name)) continue;
    const file = path.join(folder, entry.name);
    if (entry.isDirectory()) yield* projectFiles(file);
    else if (entry.isFile() && !/\.(png|svg)$/.test(entry.name)) yield path.relative(root, file);
  }
}

/** Links the packages installed here into a copy of this tree. Its workspaces resolve to the copy itself. */
export async function linkPackages(copy: string): Promise<void> {
  const modules = path.join(copy, 'node_modules');
  // The links to the workspaces are relative, so the copied links lead into the copy.
  await fs.cp(path.join(root, 'node_modules/@payloop'), path.join(modules, '@payloop'), {
    recursive: true,
    verbatimSymlinks: true,
  });
  for (const name of await fs.readdir(path.join(root, 'node_modules'))) {
    if (name === '@payloop' || name.startsWith('.vite') || name.startsWith('.package-lock')) continue;
    await fs.symlink(path.join(root, 'node_modules', name), path.join(modules, name));
  }
  // scripts/install.sh records the installed packages in this file.
  await fs.copyFile(path.join(copy, 'package-lock.json'), path.join(modules, '.package-lock.installed.json'));
}

/** The services that the tests cover. A user may have added others. */
export const ownServices: readonly string[] = paying;

/**
 * Removes from a copy the services that a user has added to this tree. A test that adds a service then always starts
 * from the same tree.
 */
export async function removeAddedServices(copy: string): Promise<void> {
  const change = async (file: string, edit: (text: string) => string) => {
    const text = await fs.readFile(path.join(copy, file), 'utf8').catch(() => undefined);
    if (text !== undefined) await fs.writeFile(path.join(copy, file), edit(text));
  };
  for (const name of await fs.readdir(path.join(copy, 'services'))) {
    if (ownServices.includes(name)) continue;
    await fs.rm(path.join(copy, 'services', name), { recursive: true });
    for (const list of ['kustomize/base/kustomization.yaml', 'k8s/kustomization.yaml']) {
      await change(list, (text) => text.replace(new RegExp(`^.*/services/${name}/.*\\n`, 'm'), ''));
    }
    await change('package-lock.json', (text) => {
      const lock: { packages: Record<string, unknown> } = JSON.parse(text);
      delete lock.packages[`services/${name}`];
      delete lock.packages[`node_modules/@payloop/${name}`];
      return `${JSON.stringify(lock, undefined, 2)}\n`;
    });
  }
}

/** Removes a copy with its parent folder. */
export function removeTree(copy: string): Promise<void> {
  return fs.rm(path.dirname(copy), { recursive: true, force: true });
}

/** Returns the paths that differ from the commit, with the marks of `git status`. */
export function changesIn(copy: string): string[] {
  const status = execFileSync('git', ['status', '--porcelain', '--untracked-files=all'], {
    cwd: copy,
    encoding: 'utf8',
  });
  return status.split('\n').filter(Boolean);
}
