// @module-tag slow
import { once } from 'node:events';
import * as fs from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { Outcome, Work } from '../../../tests/support/ahead-worker.ts';

let root: string;
beforeEach(() => {
  // The name has characters with a meaning in URLs.
  root = fs.realpathSync(fs.mkdtempSync(join(tmpdir(), 'payloop-ahead-100%#-')));
  write('package.json', '{"type":"module"}');
  write('chassis/package.json', '{"name":"@toy/chassis","type":"module","exports":{"./*.ts":"./src/*.ts"}}');
  fs.mkdirSync(join(root, 'node_modules/@toy'), { recursive: true });
  fs.symlinkSync('../../chassis', join(root, 'node_modules/@toy/chassis'));
});
afterEach(() => fs.rmSync(root, { recursive: true }));

const urlOf = (path: string) => pathToFileURL(join(root, path)).href;

function write(path: string, content: string): void {
  const file = join(root, path);
  fs.mkdirSync(dirname(file), { recursive: true });
  fs.rmSync(file, { force: true });
  fs.writeFileSync(file, content);
}

function remove(path: string): void {
  fs.rmSync(join(root, path), { force: true });
}

function link(path: string, target: string): void {
  remove(path);
  fs.symlinkSync(target, join(root, path));
}

const runner = new URL('../../../tests/support/ahead-worker.ts', import.meta.url);

async function start(work: Work) {
  const worker = new Worker(runner, {
    workerData: work,
    execArgv: ['--disable-warning=ExperimentalWarning'],
  });
  const [linked] = (await once(worker, 'message')) as [Outcome];
  return {
    linked,
    async run(): Promise<Outcome> {
      worker.postMessage('run', []);
      const [outcome] = (await once(worker, 'message')) as [Outcome];
      await worker.terminate();
      return outcome;
    },
  };
}

/** Links main.ts, then edits, then runs it. Checks that a cold start after the edit has the same outcome. */
async function afterEdit(edit: () => void, more: Partial<Work> = {}): Promise<Outcome> {
  const main = urlOf('main.ts');
  const ahead = await start({ main, ahead: [main], ...more });
  expect(ahead.linked.order).toEqual([]);
  edit();
  const cold = await start({ main });
  const [outcome, expected] = await Promise.all([ahead.run(), cold.run()]);
  expect(outcome).toEqual(expected);
  return outcome;
}

/** An expression that is true in a module that was linked ahead: its URL shows it. */
const isAhead = `import.meta.url.endsWith('?ahead')`;

test('reloads the changed file and its importers, but no other module', async () => {
  const main = urlOf('main.ts');
  write(
    'main.ts',
    `import { a } from './a.ts'; import { d } from './d.ts'; export const answer = [${isAhead}, a, d];`,
  );
  write('a.ts', `import { b } from './b.ts'; export const a = [${isAhead}, b];`);
  write('b.ts', `import { c } from './c.ts'; export const b = [${isAhead}, c];`);
  write('c.ts', `export const c = [${isAhead}, 1];`);
  write('d.ts', `export const d = [${isAhead}];`);
  const ahead = await start({ main, ahead: [main] });
  write('b.ts', `import { c } from './c.ts'; export const b = ['changed', ${isAhead}, c];`);
  const { answer } = await ahead.run();
  expect(answer).toEqual([false, [false, ['changed', false, [true, 1]]], [true]]);
});

test('reloads an old file that changes in place, with the same size and time', async () => {
  write('main.ts', `import { a } from './a.ts'; import { b } from './b.ts'; export const answer = [a, b];`);
  write('a.ts', `export const a = 1;`);
  write('b.ts', `export const b = ${isAhead};`);
  const file = join(root, 'a.ts');
  fs.utimesSync(file, 1, 1);
  await sleep(1_100);
  const main = urlOf('main.ts');
  const ahead = await start({ main, ahead: [main] });
  fs.writeFileSync(file, `export const a = 2;`);
  fs.utimesSync(file, 1, 1);
  expect((await ahead.run()).answer).toEqual([2, true]);
});

test('the services of this repository, and tracing, can be linked ahead', async () => {
  const repository = join(import.meta.dirname, '../../..');
  const files = fs.globSync(['services/*/src/{main,service}.ts', 'libraries/chassis/src/otel.ts'], {
    cwd: repository,
  });
  expect(files.length).toBeGreaterThan(4);
  const main = urlOf('main.ts');
  write('main.ts', `export const answer = ${isAhead};`);
  const services = files.map((file) => pathToFileURL(join(repository, file)).href);
  expect(await (await start({ main, ahead: [main, ...services] })).run()).toEqual({
    answer: true,
    order: [],
  });
});

const importing = (path: string) => `import { value } from '${path}'; export const answer = value;`;

test.each<[string, string, () => void, object]>([
  ['deleted', './a.ts', () => remove('a.ts'), { code: 'ERR_MODULE_NOT_FOUND' }],
  [
    'moved',
    './a.ts',
    () => fs.renameSync(join(root, 'a.ts'), join(root, 'b.ts')),
    { code: 'ERR_MODULE_NOT_FOUND' },
  ],
  ['broken', './a.ts', () => write('a.ts', 'const = 1;'), { code: 'ERR_INVALID_TYPESCRIPT_SYNTAX' }],
  ['without its export', './a.ts', () => write('a.ts', 'export const other = 1;'), { name: 'SyntaxError' }],
  ['a folder', './a.ts', () => (remove('a.ts'), write('a.ts/x', '')), { code: 'ERR_UNSUPPORTED_DIR_IMPORT' }],
])('an imported file that is %s fails as in a cold start', async (_name, path, edit, error) => {
  write('main.ts', importing(path));
  write('a.ts', 'export const value: number = 1;');
  expect((await afterEdit(edit)).error).toMatchObject(error);
});

test.each<[string, string, string, () => void]>([
  ['a changed import', './a.ts', `import './b.ts'; export const value = 1;`, () => write('b.ts', '1;')],
  [
    'a new file',
    './a.ts',
    `export { value } from './new.ts';`,
    () => write('new.ts', 'export const value = 2;'),
  ],
])('loads %s', async (_name, path, content, edit) => {
  write('main.ts', importing(path));
  write('a.ts', 'export const value: number = 1;');
  const { answer } = await afterEdit(() => {
    edit();
    write('a.ts', content);
  });
  expect(answer).toBeDefined();
});

test('code that does not link fails as in a cold start, and runs once it is fixed', async () => {
  write('main.ts', importing('./a.ts'));
  write('a.ts', `import './gone.ts'; export const value: number = 1;`);
  expect((await afterEdit(() => {})).error).toMatchObject({ code: 'ERR_MODULE_NOT_FOUND' });
  expect((await afterEdit(() => write('gone.ts', ''))).answer).toBe(1);
});

test('code that throws during evaluation throws at its original position in the file', async () => {
  write('main.ts', importing('./a.ts'));
  write(
    'a.ts',
    `interface A { a: 1 }\n  const n: number = 1; throw new Error('no ' + n);\nexport const value = 1;`,
  );
  const { error } = await afterEdit(() => {});
  expect(error?.stack).toEqual(['Error: no 1', `    at ${urlOf('a.ts')}:2:30`]);
});

test('stack traces show the path of a linked file', async () => {
  write('main.ts', `import { fail, sites } from './a.ts'; export const answer = () => [fail(), sites()];`);
  write(
    'a.ts',
    `type A = 1;
export function fail(this: void): string[] { return new Error('x').stack!.split('\\n').slice(1, 3); }
export function sites(): unknown[] {
  const before = Error.prepareStackTrace;
  Error.prepareStackTrace = (_error, [site]) => [site.getScriptNameOrSourceURL(), site.getLineNumber(), site.getColumnNumber()];
  const found = new Error('x').stack as unknown as unknown[];
  Error.prepareStackTrace = before;
  return found;
}`,
  );
  const { answer } = await afterEdit(() => {});
  expect(JSON.stringify(answer)).not.toContain('?ahead');
});

test('reloads imported JSON that has changed', async () => {
  write('main.ts', `import data from './data.json' with { type: 'json' }; export const answer = data;`);
  write('data.json', '{"n":1}');
  expect((await afterEdit(() => {})).answer).toEqual({ n: 1 });
  expect((await afterEdit(() => write('data.json', '{"n":2}'))).answer).toEqual({ n: 2 });
  expect((await afterEdit(() => write('data.json', '{"n":'))).error).toMatchObject({ name: 'SyntaxError' });
});

test('a file of a workspace package is one module, imported by name or by path', async () => {
  write(
    'main.ts',
    `import { one } from './a.ts'; import { two } from '@toy/chassis/x.ts'; export const answer = one === two;`,
  );
  write('a.ts', `export { two as one } from './chassis/src/x.ts';`);
  write('chassis/src/x.ts', 'order.push(1); export const two = {};');
  expect(await afterEdit(() => {})).toEqual({ answer: true, order: [1] });
  expect(await afterEdit(() => write('chassis/src/x.ts', 'order.push(2); export const two = {};'))).toEqual({
    answer: true,
    order: [2],
  });
});

test('a deleted file of a workspace package is missing, as in a cold start', async () => {
  write('main.ts', `import { two } from '@toy/chassis/x.ts'; export const answer = two;`);
  write('chassis/src/x.ts', 'export const two = 2;');
  const edit = () => {
    remove('chassis/src/x.ts');
    write('main.ts', `import { two } from '@toy/chassis/x.ts'; export const answer = two + 1;`);
  };
  expect((await afterEdit(edit)).error).toMatchObject({ code: 'ERR_MODULE_NOT_FOUND' });
});

test('follows a symlink among the sources to its new target', async () => {
  write('main.ts', importing('./a.ts'));
  for (const [folder, n] of [
    ['x', 1],
    ['y', 2],
  ] as const) {
    write(`${folder}/b.ts`, `export { value } from './c.ts';`);
    write(`${folder}/c.ts`, `export const value: number = ${n};`);
  }
  link('a.ts', 'x/b.ts');
  expect((await afterEdit(() => {})).answer).toBe(1);
  expect((await afterEdit(() => link('a.ts', 'y/b.ts'))).answer).toBe(2);
});

test('a type import needs no file', async () => {
  write(
    'main.ts',
    `import type { T } from './types.ts'; export type { T } from './types.ts'; export const answer: T = 1;`,
  );
  write('types.ts', 'export type T = number;');
  expect((await afterEdit(() => remove('types.ts'))).answer).toBe(1);
});

test('import.meta refers to files, and workers and dynamic imports load the changed ones', async () => {
  write(
    'main.ts',
    `import { readFileSync } from 'node:fs';
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
const { dirname, filename, url } = import.meta;
const worker = new Worker(new URL('./worker.ts', url));
const [word] = await once(worker, 'message');
const { late } = await import('./late.ts');
const text = readFileSync(new URL('text', url), 'utf8');
export const answer = [dirname, filename, text, word, late, import.meta.resolve('./x/y.txt')];`,
  );
  write('text', 'text');
  write('x/y.txt', '');
  const edit = (n: number) => () => {
    write('worker.ts', `import { parentPort } from 'node:worker_threads'; parentPort!.postMessage(${n});`);
    write('late.ts', `export const late: number = ${n};`);
  };
  edit(1)();
  expect((await afterEdit(edit(2))).answer).toEqual([
    root,
    join(root, 'main.ts'),
    'text',
    2,
    2,
    urlOf('x/y.txt'),
  ]);
});

test('reloads a file that changes after it was read, while others are still being read', async () => {
  write('main.ts', importing('./a.ts'));
  write('a.ts', `import './b.ts'; export const value: number = 1;`);
  write('b.ts', '');
  const changed = `import './b.ts'; export const value: number = 2;`;
  write(
    'before.ts',
    `import { registerHooks } from 'node:module';
import { writeFileSync } from 'node:fs';
registerHooks({
  load(url, context, next) {
    if (url.includes('b.ts')) writeFileSync(${JSON.stringify(join(root, 'a.ts'))}, ${JSON.stringify(changed)});
    return next(url, context);
  },
});`,
  );
  expect((await afterEdit(() => {}, { before: urlOf('before.ts') })).answer).toBe(2);
});

test.each([
  ['CommonJS', 'a.cts', 'exports.value = __filename.length > 0;', true],
  ['JavaScript', 'a.js', `export const value = new Error('').stack.includes('a.js:1');`, true],
])('%s among the sources runs as in a cold start', async (_name, path, content, value) => {
  write('main.ts', importing(`./${path}`));
  write(path, content);
  expect((await afterEdit(() => {})).answer).toBe(value);
});

/** The size of the module graph. Its last module is in a workspace package. */
const size = 6;
const pathOf = (n: number) => (n === size - 1 ? `chassis/src/m${n}.ts` : `m${n}.ts`);

function specifier(from: number, to: number): string {
  if (from === size - 1) return to === from ? `./m${to}.ts` : `../../m${to}.ts`;
  if (to < size - 1) return `./m${to}.ts`;
  return from % 2 ? '@toy/chassis/m5.ts' : './chassis/src/m5.ts';
}

interface Source {
  constant: number;
  imports: Set<number>;
  flaw: '' | 'syntax' | 'throws' | 'export';
}

function textOf(n: number, { constant, imports, flaw }: Source): string {
  const list = [...imports];
  return [
    ...list.map((to) => `import { value as v${to} } from '${specifier(n, to)}';`),
    ...list.slice(0, 1).map((to) => `export { value as again } from '${specifier(n, to)}';`),
    `import type { T } from '${specifier(n, 1)}';`,
    flaw === 'syntax' ? 'const = 1;' : 'interface I { i: 1 }',
    flaw === 'throws' ? `if (true as boolean) throw new Error('m${n}');` : 'type U = T & I;',
    `order.push('m${n} ${constant}'); const where: string = new Error('').stack!.split('\\n')[1]!;`,
    `${flaw === 'export' ? '' : 'export '}const value: unknown =`,
    `  [${[constant, ...list.map((to) => `v${to}`)].join(', ')}, where, import.meta.filename];`,
    `export type T = string;`,
  ].join('\n');
}

/** Each edit changes a module. `n` is the module's number. */
const edits: Record<string, (source: Source, n: number, m: number) => void> = {
  constant: (source, _n, m) => (source.constant = m),
  import: ({ imports }, n, m) => void (m % size > n ? imports.add(m % size) : imports.delete(m % size)),
  cycle: ({ imports }, _n, m) => void imports.add(m % size),
  syntax: (source) => (source.flaw = 'syntax'),
  throws: (source) => (source.flaw = 'throws'),
  export: (source) => (source.flaw = 'export'),
  mend: (source) => (source.flaw = ''),
};
const changes: Record<string, (sources: Source[], n: number, m: number) => void> = {
  ...Object.fromEntries(
    Object.entries(edits).map(([name, edit]) => [
      name,
      (sources: Source[], n: number, m: number) => {
        edit(sources[n]!, n, m);
        write(pathOf(n), textOf(n, sources[n]!));
      },
    ]),
  ),
  delete: (_sources, n) => remove(pathOf(n)),
  link: (_sources, n, m) => link(pathOf(n), join(root, `other/${m % 2}.ts`)),
  json: (_sources, _n, m) => write('data.json', String(m)),
};

// AHEAD_RUNS=1000 vitest run libraries/chassis/dev/ahead.test.ts -t random
test('after random edits, linked modules answer as in a cold start', { timeout: 3_600_000 }, async () => {
  const index = fc.nat(size - 1);
  // Repeats harmless changes, so that half of all changes leave code that runs.
  const names = [
    ...Object.keys(changes),
    ...Array<string>(8).fill('constant'),
    ...Array<string>(4).fill('import'),
  ];
  const change = fc.tuple(fc.constantFrom(...names), index, fc.nat(99));
  const list = (maxLength: number) => fc.array(change, { maxLength });
  const main = urlOf('main.ts');
  write(
    'main.ts',
    `import { value } from './m0.ts'; import data from './data.json' with { type: 'json' };
const late = await import('./m3.ts').then(({ value }) => value, ({ message }) => message);
export const answer = [value, late, data];`,
  );
  for (const n of [0, 1]) {
    write(`other/${n}.ts`, `import { value as v } from '../m4.ts'; export const value = ['other ${n}', v];`);
  }
  const property = fc.asyncProperty(list(2), list(4), async (before, after) => {
    const sources = Array.from({ length: size }, (_, n): Source => {
      return { constant: n, imports: new Set(n < size - 1 ? [n + 1] : []), flaw: '' };
    });
    write('data.json', '0');
    sources.forEach((source, n) => write(pathOf(n), textOf(n, source)));
    for (const [name, n, m] of before) changes[name]!(sources, n, m);
    const [ahead, cold] = await Promise.all([
      start({ main, ahead: [main, urlOf('m3.ts')] }),
      start({ main }),
    ]);
    expect(ahead.linked.order).toEqual([]);
    for (const [name, n, m] of after) changes[name]!(sources, n, m);
    const [outcome, expected] = await Promise.all([ahead.run(), cold.run()]);
    expect(outcome).toEqual(expected);
  });
  await fc.assert(property, { numRuns: Number(process.env.AHEAD_RUNS ?? 20) });
});
