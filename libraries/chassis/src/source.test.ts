import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { hashSource, readSources } from './source.ts';

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'payloop-source-'));
  for (const folder of ['libraries/chassis', 'services/invoice-app']) {
    mkdirSync(join(root, `${folder}/src/deep`), { recursive: true });
    for (const name of ['a.ts', 'B.ts', 'a-b.ts', 'deep/c.ts', 'ä.ts', 'a.test.ts', 'page.html']) {
      writeFileSync(join(root, `${folder}/src`, name), `// ${folder} ${name}`);
    }
  }
  cpSync(resolve(import.meta.dirname, '../../../test.sh'), join(root, 'test.sh'));
});
afterEach(() => rmSync(root, { recursive: true }));

// Runs only `hash_source` of test.sh.
const hashInBash = () =>
  execFileSync(
    'bash',
    ['-c', `eval "$(sed -n '/sha256sum/p;/^hash_source()/,/^}/p' test.sh)"; hash_source invoice-app`],
    {
      cwd: root,
      encoding: 'utf8',
    },
  ).trim();

test('the hash equals the one that test.sh computes', () => {
  expect(hashSource(root, 'invoice-app')).toMatch(/^[0-9a-f]{64}$/);
  expect(hashSource(root, 'invoice-app')).toBe(hashInBash());
});

test.each([
  ['libraries/chassis/src/a.ts', true],
  ['services/invoice-app/src/deep/new.ts', true],
  ['services/invoice-app/src/a.test.ts', false],
  ['services/invoice-app/package.json', false],
])('a change of %s changes the hash: %s', (path, changes) => {
  const before = hashSource(root, 'invoice-app');
  writeFileSync(join(root, path), 'changed');
  expect(hashSource(root, 'invoice-app') !== before).toBe(changes);
  expect(hashSource(root, 'invoice-app')).toBe(hashInBash());
});

test('a change that keeps the size and the time of a file changes the hash', async () => {
  const file = join(root, 'services/invoice-app/src/a.ts');
  const { size } = statSync(file);
  utimesSync(file, 1, 1);
  // The digest of a file is kept once its last change is a second old.
  await sleep(1_100);
  const before = hashSource(root, 'invoice-app');
  writeFileSync(file, 'x'.repeat(size));
  utimesSync(file, 1, 1);
  expect(hashSource(root, 'invoice-app')).not.toBe(before);
  expect(hashSource(root, 'invoice-app')).toBe(hashInBash());
});

/** Creates an entry in invoice-app's sources: a symlink if `content` is `-> target`, otherwise a file. */
function make(name: string | Buffer, content = 'new') {
  const path = Buffer.concat([Buffer.from(join(root, 'services/invoice-app/src/')), Buffer.from(name)]);
  const [, target] = /^-> (.*)$/.exec(content) ?? [];
  if (target === undefined) writeFileSync(path, content);
  else symlinkSync(target, path);
}

const names = [
  'pay copy.ts',
  "don't.ts",
  'say "x".ts',
  '#1.ts',
  '100%.ts',
  '$HOME.ts',
  '-x.ts',
  '*.ts',
  'back\\slash.ts',
  'two\nlines.ts',
  '\u001B[31m.ts',
];
test.each(names.map((name) => [name]))('the name and the content of %j affect the hash', (name) => {
  const hashes = [hashSource(root, 'invoice-app')];
  make(name);
  hashes.push(hashSource(root, 'invoice-app'));
  make(name, 'changed');
  hashes.push(hashSource(root, 'invoice-app'));
  expect(new Set(hashes).size).toBe(3);
  expect(hashes[2]).toBe(hashInBash());
  expect(readSources(root, 'invoice-app').problems).toEqual([]);
});

test.runIf(process.platform === 'linux')('a name that is not UTF-8 counts by its bytes', () => {
  const before = hashSource(root, 'invoice-app');
  make(Buffer.from([0x61, 0xff, 0x2e, 0x74, 0x73]));
  expect(hashSource(root, 'invoice-app')).not.toBe(before);
  expect(hashSource(root, 'invoice-app')).toBe(hashInBash());
});

test('symlinks are followed, except for one that points back to its own folder', () => {
  const before = hashSource(root, 'invoice-app');
  mkdirSync(join(root, 'elsewhere'));
  writeFileSync(join(root, 'elsewhere/far.ts'), 'far');
  make('linked', '-> ../../../elsewhere');
  make('file.ts', '-> ../../../elsewhere/far.ts');
  make('deep/up', '-> ..');
  const linked = hashSource(root, 'invoice-app');
  expect(linked).not.toBe(before);
  expect(linked).toBe(hashInBash());
  writeFileSync(join(root, 'elsewhere/far.ts'), 'changed');
  expect(hashSource(root, 'invoice-app')).not.toBe(linked);
  expect(hashSource(root, 'invoice-app')).toBe(hashInBash());
});

test.each([
  ['.#api.ts', '-> me@host.1234:5678'],
  ['.api.ts', 'hidden'],
  ['._api.ts', 'resource fork'],
  ['notes.md', 'no source'],
  ['link.md', '-> nowhere'],
  ['linked', '-> nowhere'],
])('%s does not change the hash and is not a problem', (name, content) => {
  const before = readSources(root, 'invoice-app');
  make(name, content);
  expect(readSources(root, 'invoice-app')).toEqual(before);
  expect(hashInBash()).toBe(before.hash);
});

test('a folder named like a source file is treated as a folder', () => {
  const before = hashSource(root, 'invoice-app');
  mkdirSync(join(root, 'services/invoice-app/src/x.ts'));
  expect(hashSource(root, 'invoice-app')).toBe(before);
  make('x.ts/y.ts');
  expect(hashSource(root, 'invoice-app')).not.toBe(before);
  expect(hashSource(root, 'invoice-app')).toBe(hashInBash());
});

test.each([
  ['gone.ts', '-> nowhere', 'is a broken symlink'],
  ['round.ts', '-> round.ts', 'is a symlink in a loop of symlinks'],
])('%s is reported as a problem by name, and the other files still count', (name, content, why) => {
  make(name, content);
  const { hash, problems } = readSources(root, 'invoice-app');
  expect(problems).toEqual([`services/invoice-app/src/${name} ${why}`]);
  expect(hash).toBe(hashInBash());
  make('a.ts', 'changed');
  expect(hashSource(root, 'invoice-app')).not.toBe(hash);
});

// Root can read every file.
test.skipIf(process.getuid?.() === 0)('an unreadable file is reported as a problem by name', () => {
  make('closed.ts');
  const before = hashSource(root, 'invoice-app');
  chmodSync(join(root, 'services/invoice-app/src/closed.ts'), 0);
  const { hash, problems } = readSources(root, 'invoice-app');
  expect(problems).toEqual(['services/invoice-app/src/closed.ts cannot be read: its permissions forbid it']);
  expect([hash !== before, hash]).toEqual([true, hashInBash()]);
});

test('a folder too large for its volume in a cluster is a problem', () => {
  make('large.bin', 'x'.repeat(16 * 2 ** 20));
  expect(readSources(root, 'invoice-app').problems).toEqual([
    'services/invoice-app/src holds 17 MiB; in a cluster, Kubernetes evicts the pod above 16 MiB',
  ]);
  const limits = readFileSync(
    resolve(import.meta.dirname, '../../../kustomize/overlays/dev/live-update.yaml'),
    'utf8',
  );
  expect(limits.match(/sizeLimit: .*/g)).toEqual(['sizeLimit: 16Mi', 'sizeLimit: 16Mi']);
  make('large.bin', 'x'.repeat(15 * 2 ** 20));
  expect(readSources(root, 'invoice-app').problems).toEqual([]);
});

test('a missing folder is a problem, and the other folder still counts', () => {
  rmSync(join(root, 'services/invoice-app/src'), { recursive: true });
  const { hash, problems } = readSources(root, 'invoice-app');
  expect(problems).toEqual(['services/invoice-app/src is missing']);
  expect(hash).toBe(hashInBash());
});
