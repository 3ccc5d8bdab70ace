import { expect, test } from 'vitest';
import { findGaps, findSteps, readPath } from './steps.ts';

test('every await on the path of a payment is a step with a name of its own', () => {
  expect(findGaps()).toEqual([]);
});

test('the steps are those that a payment is known to have', () => {
  const names = findSteps().map(({ name }) => name);
  for (const name of ['claim', 'post', 'record', 'release', 'charge', 'store']) expect(names).toContain(name);
});

const source = (text: string) => [...readPath(), { service: 'invoice-app' as const, file: 'new.ts', text }];

test.each([
  [
    'an await',
    'async function more() {\n  await database.query();\n}',
    'new.ts:2: not a step: await database.query();',
  ],
  [
    'an await within an expression',
    'const it = use(await fetch(url));',
    'new.ts:1: not a step: await fetch(url));',
  ],
  ['a loop', 'for await (const row of rows) use(row);', 'new.ts:1: not a step: await rows) use(row);'],
  ['a chain', '  fetch(url).then(use);', 'new.ts:1: not a step: await fetch(url).then(use);'],
  [
    'several at once',
    'await Promise.all([fetch(url)]);',
    'new.ts:1: not a step: await Promise.all([fetch(url)]);',
  ],
  ['a name that is taken', `await step('claim', work);`, `two steps are named 'claim'`],
])('%s without a name of its own is noticed', (_name, text, gap) => {
  expect(findGaps(source(text))).toEqual([gap]);
});

test.each([
  ['a comment', '// await nothing\n/* await\n nothing */'],
  ['a call of what is on the path', 'async function more() {\n  await this.#payBatch(batch);\n}'],
])('%s is none', (_name, text) => {
  expect(findGaps(source(text))).toEqual([]);
});

test('a step of two statements is noticed', () => {
  const text = `export async function both(database) {
  await database.query('one');
  await database.query('other');
}`;
  expect(findGaps(readPath(), [{ file: 'new.ts', text }])).toEqual([
    'new.ts: both is more than one statement',
  ]);
});
