import { expect, test } from 'vitest';
import { findFailpoints, findGaps, readPaymentPath } from './failpoints.ts';

test('every await on the path of a payment is a failpoint with a unique name', () => {
  expect(findGaps()).toEqual([]);
});

test('finds the well-known failpoints of a payment', () => {
  const names = findFailpoints().map(({ name }) => name);
  for (const name of ['claim', 'post', 'record', 'release', 'charge', 'store']) expect(names).toContain(name);
});

const source = (text: string) => [
  ...readPaymentPath(),
  { service: 'invoice-app' as const, file: 'new.ts', text },
];

test.each([
  [
    'an await',
    'async function more() {\n  await database.query();\n}',
    'new.ts:2: not a failpoint: await database.query();',
  ],
  [
    'an await within an expression',
    'const it = use(await fetch(url));',
    'new.ts:1: not a failpoint: await fetch(url));',
  ],
  ['a loop', 'for await (const row of rows) use(row);', 'new.ts:1: not a failpoint: await rows) use(row);'],
  ['a chain', '  fetch(url).then(use);', 'new.ts:1: not a failpoint: await fetch(url).then(use);'],
  [
    'a Promise.all',
    'await Promise.all([fetch(url)]);',
    'new.ts:1: not a failpoint: await Promise.all([fetch(url)]);',
  ],
  ['a duplicate name', `await step('claim', work);`, `two failpoints are named 'claim'`],
])('reports a missing or duplicate failpoint: %s', (_name, text, gap) => {
  expect(findGaps(source(text))).toEqual([gap]);
});

test.each([
  ['a comment', '// await nothing\n/* await\n nothing */'],
  ['a call of a function on the path', 'async function more() {\n  await this.#payBatch(batch);\n}'],
])('ignores %s', (_name, text) => {
  expect(findGaps(source(text))).toEqual([]);
});

test('reports a failpoint that runs two statements', () => {
  const text = `export async function both(database) {
  await database.query('one');
  await database.query('other');
}`;
  expect(findGaps(readPaymentPath(), [{ file: 'new.ts', text }])).toEqual([
    'new.ts: both runs more than one statement',
  ]);
});
