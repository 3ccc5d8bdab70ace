// @module-tag slow
import { writeFileSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { freePort } from '../../../local/ports.ts';
import { exists } from '../../../local/processes.ts';
import { hashSource } from '../src/source.ts';
import { Reloader } from './reloader.ts';

/** A service that tells its parent its port, and later that it is ready. */
const toy = `
import { appendFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { word } from './word.ts';
import { beforeReady } from './ready.ts';
appendFileSync('pids', process.pid + '\\n');
const server = createServer((request, response) => {
  if (request.url === '/crash') setTimeout(() => { throw new Error('crashed') });
  else response.end(JSON.stringify({ word, pid: process.pid }));
});
server.listen(0, '127.0.0.1', async () => {
  process.send?.({ port: (server.address() as { port: number }).port });
  await beforeReady();
  process.send?.({ ready: true });
});
process.on('SIGTERM', () => process.exit());
`;

/** How long a standby process takes to start, in milliseconds. After that, a change is loaded at once. */
const prepared = 700;

let root: string;
let reloader: Reloader;
let said: string[];
/** Messages about slow starts, kept apart: on a busy machine any start may be slow. */
let slow: string[];
let missed: number;

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'payloop-reload-'));
  for (const folder of ['libraries/chassis', 'services/toy']) {
    await mkdir(join(root, folder, 'src'), { recursive: true });
    await writeFile(join(root, folder, 'package.json'), '{"type":"module","dependencies":{}}');
  }
  await write('main.ts', toy);
  await write('word.ts', `export const word: string = 'one';`);
  await write('ready.ts', `export async function beforeReady(): Promise<void> {}`);
  said = [];
  slow = [];
  const say = (line: string) => void (line.includes('does not answer yet') ? slow : said).push(line);
  missed = 0;
  reloader = new Reloader({ root, service: 'toy', inspect: false, say, onMissed: () => (missed += 1) });
});
afterEach(async () => {
  await reloader.stop();
  await rm(root, { recursive: true });
});

function write(file: string, content: string): Promise<void> {
  return writeFile(join(root, 'services/toy/src', file), content);
}

/** Saves a file and reports it as a watcher would. */
async function save(file: string, content: string): Promise<void> {
  await write(file, content);
  reloader.changed([`services/toy/src/${file}`]);
}

async function ask(path = '/'): Promise<{ word: string; pid: number }> {
  const { port } = await reloader.serving();
  return (await (await fetch(`http://127.0.0.1:${port}${path}`)).json()) as { word: string; pid: number };
}

async function served(word: string): Promise<void> {
  await expect.poll(async () => (await ask()).word, { timeout: 10_000, interval: 10 }).toBe(word);
}

const takeovers = () => said.filter((line) => line.includes('runs the new code'));

test('serves a save with a new process, and prints the changed file', async () => {
  reloader.start();
  const first = await ask();
  expect(first.word).toBe('one');
  await save('word.ts', `export const word: string = 'two';`);
  await served('two');
  expect((await ask()).pid).not.toBe(first.pid);
  expect(said).toEqual([
    expect.stringMatching(/^toy runs the new code after \d+ ms: services\/toy\/src\/word\.ts$/),
  ]);
  await expect.poll(() => exists(first.pid), { timeout: 5_000 }).toBe(false);
});

test('a standby process has linked its files and has run none of them', { timeout: 60_000 }, async () => {
  await write(
    'ready.ts',
    `export const url = import.meta.url; export async function beforeReady(): Promise<void> {}`,
  );
  await write('word.ts', `import { url } from './ready.ts'; export const word: string = url;`);
  reloader.start();
  expect((await ask()).word).toMatch(/ready\.ts/);
  let saves = 0;
  await expect
    .poll(
      async () => {
        saves += 1;
        await save(
          'word.ts',
          `import { url } from './ready.ts'; export const word: string = url + ' ${saves}';`,
        );
        await expect
          .poll(async () => (await ask()).word, { timeout: 10_000 })
          .toMatch(new RegExp(` ${saves}$`));
        await sleep(prepared);
        return (await ask()).word;
      },
      { timeout: 50_000 },
    )
    .toMatch(/ready\.ts\?ahead \d+$/);
  expect((await readFile(join(root, 'pids'), 'utf8')).trim().split('\n')).toHaveLength(saves + 1);
});

test('stops a process only after the requests on their way to it are released', async () => {
  reloader.start();
  const old = await reloader.serving();
  const release = old.hold();
  const { pid } = await ask();
  await save('word.ts', `export const word: string = 'two';`);
  await served('two');
  await sleep(300);
  expect(exists(pid)).toBe(true);
  release();
  await expect.poll(() => exists(pid), { timeout: 5_000 }).toBe(false);
});

test('starts no process for a save that changes no source', async () => {
  reloader.start();
  const { pid } = await ask();
  await save('word.ts', `export const word: string = 'one';`);
  await save('word.test.ts', 'const = 1;');
  await sleep(300);
  expect((await ask()).pid).toBe(pid);
  expect(said).toEqual([]);
});

test('finds an unreported change soon after a reported one', async () => {
  reloader.start();
  await served('one');
  await save('word.ts', `export const word: string = 'two';`);
  await served('two');
  await write('word.ts', `export const word: string = 'three';`);
  await served('three');
  expect(takeovers()).toHaveLength(2);
});

test.each([
  ['does not parse', 'const = 1;'],
  ['throws while it is loaded', `throw new Error('not today'); export const word: string = '';`],
  ['exits', 'process.exit(0); export const word: string = 0 as never;'],
])('keeps the previous code serving when new code %s, and reports it once', async (_name, broken) => {
  reloader.start();
  const { pid } = await ask();
  await save('word.ts', broken);
  await expect.poll(() => said, { timeout: 10_000 }).toHaveLength(1);
  expect(said[0]).toMatch(/^toy did not start \(exit code [01].*\)\. The previous code keeps serving/);
  reloader.changed([]);
  await sleep(300);
  expect(await ask()).toEqual({ word: 'one', pid });
  expect(said).toHaveLength(1);

  await save('word.ts', `export const word: string = 'mended';`);
  await served('mended');
});

test('keeps the same process after a broken save is reverted, and reports the save again when it returns', async () => {
  reloader.start();
  const { pid } = await ask();
  for (const times of [1, 2]) {
    await save('word.ts', 'const = 1;');
    await expect.poll(() => said, { timeout: 10_000 }).toHaveLength(2 * times - 1);
    await save('word.ts', `export const word: string = 'one';`);
    await expect.poll(() => said.at(-1), { timeout: 10_000 }).toBe('toy runs the previous code again');
  }
  expect(await ask()).toEqual({ word: 'one', pid });
  expect(takeovers()).toEqual([]);
});

test('serves only the last of several quick saves, and no half-written one', async () => {
  await write(
    'ready.ts',
    `export const beforeReady = () => new Promise((resolve) => setTimeout(resolve, 400));`,
  );
  reloader.start();
  await served('one');
  const seen = new Set<string>();
  for (const word of ['two', 'three', 'four', 'five']) {
    await save('word.ts', `export const word: string = '${word}';`);
    seen.add((await ask()).word);
    await sleep(150);
  }
  await served('five');
  expect(seen).toEqual(new Set(['one']));
  expect(takeovers()).toHaveLength(1);
  const { pid } = await ask();
  const pids = (await readFile(join(root, 'pids'), 'utf8')).trim().split('\n').map(Number);
  await expect.poll(() => pids.filter(exists), { timeout: 5_000 }).toEqual([pid]);
});

test('does not serve code that changed while it was loaded', async () => {
  reloader.start();
  await served('one');
  writeFileSync(join(root, 'services/toy/src/word.ts'), `export const word: string = 'two';`);
  reloader.changed([]);
  writeFileSync(join(root, 'services/toy/src/word.ts'), `export const word: string = 'three';`);
  await served('three');
  await sleep(300);
  expect(takeovers()).toHaveLength(1);
});

test('discards a process whose sources changed just before it was ready', async () => {
  reloader.start();
  await served('one');
  // The new process changes its sources by itself, so that no poll finds the change before it is ready.
  await write(
    'ready.ts',
    `import { existsSync, writeFileSync } from 'node:fs';
    export async function beforeReady(): Promise<void> {
      if (existsSync('changed')) return;
      writeFileSync('changed', '');
      writeFileSync('services/toy/src/word.ts', "export const word: string = 'three';");
    }`,
  );
  await save('word.ts', `export const word: string = 'two';`);
  await served('three');
  expect(takeovers()).toHaveLength(1);
});

test('keeps the old code serving until the new code is ready', async () => {
  reloader.start();
  await served('one');
  await write(
    'ready.ts',
    `export const beforeReady = () => new Promise((resolve) => setTimeout(resolve, 500));`,
  );
  await save('word.ts', `export const word: string = 'two';`);
  await sleep(400);
  expect((await ask()).word).toBe('one');
  await served('two');
});

/** Keeps `failed` as the chassis's run.ts does for `GET /version`. */
const tellsFailed = `
let failed: string | null = null;
process.on('message', (message: { failed: string | null }) => (failed = message.failed));
createServer((request, response) => response.end(JSON.stringify({ failed }))).listen(Number(process.env.FAILED_PORT));
`;

test('tells the serving process which code did not start, until the folder has working code', async () => {
  const port = await freePort();
  process.env.FAILED_PORT = String(port);
  await write('main.ts', toy + tellsFailed);
  const failed = async () =>
    ((await (await fetch(`http://127.0.0.1:${port}`)).json()) as { failed: unknown }).failed;
  reloader.start();
  await served('one');
  expect(await failed()).toBeNull();
  await save('word.ts', 'const = 1;');
  await expect.poll(failed, { timeout: 10_000 }).toBe(hashSource(root, 'toy'));
  await save('word.ts', `export const word: string = 'one';`);
  await expect.poll(failed).toBeNull();
});

test('requests get the hash of code that does not start when no process serves', async () => {
  await write('word.ts', 'const = 1;');
  reloader.start();
  await expect(reloader.serving()).rejects.toThrow(`(source ${hashSource(root, 'toy')})`);
});

test.each([
  ['empty at first', ['', '']],
  ['cut within a word', ['export const wo', 'export const word: str']],
  ['cut within a string', ["export const word: string = '", "export const word: string = 'tw"]],
])(
  'reports no error for a file that is %s while it is written, and serves it once it is whole',
  async (_name, parts) => {
    reloader.start();
    await served('one');
    await sleep(prepared);
    for (const part of parts) {
      await save('word.ts', part);
      await sleep(200);
    }
    await write('word.ts', `export const word: string = 'two';`);
    await served('two');
    expect(said.filter((line) => line.includes('did not start'))).toEqual([]);
  },
);

test('reports no mistake that existed only while the code was loaded', async () => {
  reloader.start();
  await served('one');
  await sleep(prepared);
  const good = `export const word: string = 'two';`;
  await save('word.ts', good);
  writeFileSync(join(root, 'services/toy/src/word.ts'), 'const = 1;');
  await sleep(80);
  writeFileSync(join(root, 'services/toy/src/word.ts'), good);
  await served('two');
  expect(said.filter((line) => line.includes('did not start'))).toEqual([]);
});

test('finds an unreported change within two seconds, and calls onMissed', async () => {
  reloader.start();
  await served('one');
  await sleep(3_500);
  expect(missed).toBe(0);
  await write('word.ts', `export const word: string = 'two';`);
  const at = performance.now();
  await served('two');
  expect(performance.now() - at).toBeLessThan(2_000);
  await expect.poll(() => missed).toBe(1);
});

test('reports an unreadable entry by name once, and again when it comes back', async () => {
  reloader.start();
  await served('one');
  const link = join(root, 'services/toy/src/gone.ts');
  const line = 'toy: services/toy/src/gone.ts is a broken symlink';
  for (const times of [1, 2]) {
    await symlink('nowhere', link);
    await expect.poll(() => said.filter((each) => each === line), { timeout: 2_000 }).toHaveLength(times);
    await save('word.ts', `export const word: string = '${times}';`);
    await served(String(times));
    await rm(link);
    await sleep(1_200);
  }
});

test('reports code that neither listens nor exits', async () => {
  reloader.start();
  await served('one');
  await save(
    'word.ts',
    `await new Promise(() => setInterval(() => {}, 1_000)); export const word: string = '';`,
  );
  await expect.poll(() => slow, { timeout: 3_000 }).toEqual(['toy does not answer yet with the new code']);
  await save('word.ts', `export const word: string = 'two';`);
  await served('two');
});

test('restarts code that crashes while it serves', async () => {
  reloader.start();
  const { pid } = await ask();
  // Waits until the fast polls after the start are over.
  await sleep(3_200);
  await ask('/crash').catch(() => {});
  await expect.poll(async () => (await ask()).pid, { timeout: 10_000 }).not.toBe(pid);
  expect(said).toEqual([
    expect.stringMatching(/^toy exited unexpectedly \(exit code 1.*\) and is restarted$/),
  ]);
});

test('requests fail until a save has code that starts', async () => {
  await write('word.ts', 'const = 1;');
  reloader.start();
  await expect(reloader.serving()).rejects.toThrow('toy does not start, see its log');
  await save('word.ts', `export const word: string = 'one';`);
  await served('one');
});
