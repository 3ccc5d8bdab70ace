import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, mkdirSync, mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import { lstatSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { crc32 } from 'node:zlib';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { compileCache } from './compile-cache.ts';
import { ServiceProcess } from './service-process.ts';

/** The id of another user, for tests that run as root. */
const otherUser = 65_534;
const isRoot = process.getuid?.() === 0;

let root: string;
let shared: string;
const own = () => join(shared, `payloop-${process.getuid?.()}`);
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'payloop-root-'));
  shared = mkdtempSync(join(tmpdir(), 'payloop-shared-'));
  // The mode of /tmp.
  chmodSync(shared, 0o1777);
  vi.stubEnv('TMPDIR', shared);
  vi.stubEnv('NODE_COMPILE_CACHE', '');
});
afterEach(() => {
  vi.unstubAllEnvs();
  for (const folder of [root, shared]) rmSync(folder, { recursive: true });
});

const modeOf = (folder: string) => (lstatSync(folder).mode & 0o7777).toString(8);

test('the cache is in the folder of the sources, accessible to this user only', () => {
  const folder = compileCache(root)!;
  expect(folder).toBe(join(root, '.payloop/compile-cache'));
  expect(modeOf(folder)).toBe('700');
  expect(compileCache(root)).toBe(folder);
});

/** Puts a file in place of the folder, so that not even root can create one there. */
const closeRoot = () => writeFileSync(join(root, '.payloop'), '');

test('the cache is in the temporary folder, accessible to this user only, if the sources are read-only', () => {
  closeRoot();
  expect(compileCache(root)).toBe(own());
  expect(modeOf(own())).toBe('700');
});

test.each<[string, () => void]>([
  ['is writable for all', () => chmodSync(mkdirs(own()), 0o777)],
  ['is writable for its group', () => chmodSync(mkdirs(own()), 0o770)],
  ['is a link to a folder of this user', () => symlinkSync(mkdirs(join(shared, 'x')), own())],
  ['is a file', () => writeFileSync(own(), '')],
])('does not use an existing folder that %s', (_name, make) => {
  closeRoot();
  make();
  expect(compileCache(root)).toBeUndefined();
});

test.runIf(isRoot)('does not use a folder that another user owns, in either place', () => {
  chownSync(mkdirs(join(root, '.payloop/compile-cache')), otherUser, otherUser);
  expect(compileCache(root)).toBe(own());
  chownSync(own(), otherUser, otherUser);
  expect(compileCache(root)).toBeUndefined();
});

test('applies the same checks to a folder that the user sets', () => {
  const chosen = join(shared, 'chosen');
  vi.stubEnv('NODE_COMPILE_CACHE', chosen);
  expect(compileCache(root)).toBe(chosen);
  chmodSync(chosen, 0o777);
  expect(compileCache(root)).toBeUndefined();
});

function mkdirs(folder: string): string {
  mkdirSync(folder, { recursive: true });
  return folder;
}

const honest = `process.send({ port: 1 }); setTimeout(() => {}, 60_000);`;
const forged = `process.send({ port: 2 }); setTimeout(() => {}, 60_000);`;

/** Creates a cache that claims to come from the honest source, and runs the forged one. */
function forge(folder: string): void {
  const main = join(root, 'services/toy/src/main.ts');
  writeFileSync(main, forged);
  const env = { PATH: process.env.PATH, NODE_COMPILE_CACHE: folder };
  const script = `process.send = () => {}; await import(${JSON.stringify(main)}); process.exit()`;
  execFileSync(process.execPath, ['--input-type=module', '--eval', script], { env, stdio: 'ignore' });
  writeFileSync(main, honest);
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const file = join(entry.parentPath, entry.name);
    const content = readFileSync(file);
    // The file's header has a CRC-32 of its source.
    const at = content.subarray(0, 64).indexOf(checksumOf(forged));
    if (at >= 0) writeFileSync(file, content.fill(checksumOf(honest), at, at + 4));
  }
}

function checksumOf(source: string): Buffer {
  const number = Buffer.alloc(4);
  number.writeUInt32LE(crc32(source));
  return number;
}

/** Returns the code that a process of the service runs: 1 for honest, 2 for forged. */
async function codeThatRuns(): Promise<number> {
  const generation = new ServiceProcess({ root, service: 'toy', inspect: false });
  generation.load('');
  await generation.listening;
  await generation.stop();
  return generation.port;
}

test('does not run code that another user put into caches in the temporary folder', async () => {
  for (const folder of ['libraries/chassis', 'services/toy']) {
    mkdirs(join(root, folder, 'src'));
    writeFileSync(join(root, folder, 'package.json'), '{"type":"module","dependencies":{}}');
  }
  // Proves that the forgery works: it runs from a trusted folder.
  const trusted = join(shared, 'trusted');
  forge(mkdirs(trusted));
  vi.stubEnv('NODE_COMPILE_CACHE', trusted);
  expect(await codeThatRuns()).toBe(2);

  vi.stubEnv('NODE_COMPILE_CACHE', '');
  for (const name of ['payloop-compile-cache', 'node-compile-cache', `payloop-${process.getuid?.()}`]) {
    const folder = mkdirs(join(shared, name));
    forge(folder);
    chmodSync(folder, 0o777);
    if (isRoot) chownSync(folder, otherUser, otherUser);
  }
  expect(await codeThatRuns()).toBe(1);
  rmSync(join(root, '.payloop'), { recursive: true });
  closeRoot();
  expect(await codeThatRuns()).toBe(1);
});

test('make keeps its caches of code out of the temporary folder', () => {
  const repository = join(import.meta.dirname, '../../..');
  const input = 'include Makefile\nall-variables: ; @env\n';
  const outer = { PATH: process.env.PATH, TMPDIR: shared, HOME: shared };
  const lines = execFileSync('make', ['-f', '-', 'all-variables'], { cwd: repository, input, env: outer });
  const valueOf = (name: string) => new RegExp(`^${name}=(.*)$`, 'm').exec(lines.toString())?.[1];
  expect(valueOf('NODE_COMPILE_CACHE')).toBe(join(repository, '.payloop/compile-cache'));
  const tsx = pathToFileURL(join(repository, 'node_modules/tsx/dist/loader.mjs')).href;
  const script = join(root, 'script.mts');
  writeFileSync(script, `import { enableCompileCache } from 'node:module'; enableCompileCache();`);
  const run = (from: NodeJS.ProcessEnv) =>
    execFileSync(process.execPath, ['--import', tsx, script], {
      cwd: repository,
      env: from,
    });
  run(outer);
  // By default, Node and tsx both put their caches there.
  expect(readdirSync(shared).toSorted()).toEqual(['node-compile-cache', `tsx-${process.getuid?.()}`]);
  for (const name of readdirSync(shared)) rmSync(join(shared, name), { recursive: true });
  run({
    ...outer,
    NODE_COMPILE_CACHE: join(root, '.payloop/compile-cache'),
    TSX_DISABLE_CACHE: valueOf('TSX_DISABLE_CACHE'),
  });
  expect(readdirSync(shared)).toEqual([]);
});
