// @module-tag slow
import { execFileSync, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';

const root = path.resolve(import.meta.dirname, '..');
/** Returns a tool's path: an editor that runs this test does not have the tools on its PATH. */
const tool = (name: string) => path.join(root, 'node_modules/.bin', name);

// On a foreign file system macOS writes a file's resource fork to a file ._NAME beside it.
let folder: string;
beforeEach(() => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'payloop-forks-'));
  for (const file of ['.oxlintrc.json', '.prettierignore', '.prettierrc.json', 'vitest.config.ts'])
    fs.copyFileSync(path.join(root, file), path.join(folder, file));
  fs.symlinkSync(path.join(root, 'node_modules'), path.join(folder, 'node_modules'));
  for (const name of ['local', 'libraries/chassis/src', 'tests/support'])
    fs.mkdirSync(path.join(folder, name), { recursive: true });
  fs.writeFileSync(
    path.join(folder, 'tests/support/postgres.ts'),
    'export default function setup(): void {}\n',
  );
  fs.writeFileSync(
    path.join(folder, 'local/x.test.ts'),
    "import { expect, test } from 'vitest';\n\ntest('x', () => expect(1).toBe(1));\n",
  );
  for (const file of ['local/._x.test.ts', 'libraries/chassis/src/._x.ts', '._package.json'])
    fs.writeFileSync(path.join(folder, file), 'Mac OS X \0 const = ;');
});
afterEach(() => fs.rmSync(folder, { recursive: true }));

test.each([
  ['oxlint', ['--quiet']],
  ['prettier', ['--check', '--log-level=warn', '.']],
  ['vitest', ['run']],
])('%s ignores resource forks', (name, args) => {
  const { status, stdout, stderr } = spawnSync(tool(name), args, { cwd: folder, encoding: 'utf8' });
  expect([status, status === 0 ? '' : stdout + stderr]).toEqual([0, '']);
});

test('the same tools reject a broken file', () => {
  fs.writeFileSync(path.join(folder, 'local/wrong.test.ts'), 'const = ;');
  for (const [name, ...args] of [
    ['oxlint', '--quiet'],
    ['prettier', '--check', '.'],
    ['vitest', 'run'],
  ] as const)
    expect(() => execFileSync(tool(name), args, { cwd: folder, stdio: 'pipe' })).toThrow('Command failed');
});
