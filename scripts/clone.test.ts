import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';

const root = path.resolve(import.meta.dirname, '..');
let folder: string;
let clone: string;

beforeAll(async () => {
  folder = await fs.mkdtemp(path.join(tmpdir(), 'payloop-clone-'));
  clone = path.join(folder, 'clone');
  const settings = ['--config=core.autocrlf=true', '--config=core.eol=crlf'];
  execFileSync('git', ['clone', '--quiet', '--no-checkout', ...settings, root, clone]);
  // Uses the attributes of this folder, committed or not.
  await fs.copyFile(path.join(root, '.gitattributes'), path.join(clone, '.git/info/attributes'));
  execFileSync('git', ['checkout', '--quiet', 'HEAD'], { cwd: clone });
});
afterAll(() => fs.rm(folder, { recursive: true, force: true }));

test('a clone with core.autocrlf=true has only line feeds, and nothing to commit', () => {
  // Each line has a file's line endings in the index and in the folder, its attributes and its name.
  const files = execFileSync('git', ['ls-files', '--eol'], { cwd: clone, encoding: 'utf8' });
  const lines = files.split('\n').filter(Boolean);
  expect(lines.length).toBeGreaterThan(100);
  expect(lines.filter((line) => !/^i\/(lf +w\/lf|-text +w\/-text|none +w\/none) /.test(line))).toEqual([]);
  expect(execFileSync('git', ['status', '--porcelain'], { cwd: clone, encoding: 'utf8' })).toBe('');
});

test('bash can parse the payment test of such a clone', () => {
  const script = path.join(clone, 'test.sh');
  expect(execFileSync('bash', ['-n', script], { encoding: 'utf8' })).toBe('');
});
