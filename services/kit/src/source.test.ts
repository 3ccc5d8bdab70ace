import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { hashSource } from './source.ts';

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'payloop-source-'));
  for (const folder of ['kit', 'invoice-app']) {
    mkdirSync(join(root, `services/${folder}/src/deep`), { recursive: true });
    for (const name of ['a.ts', 'B.ts', 'a-b.ts', 'deep/c.ts', 'ä.ts', 'a.test.ts', 'page.html']) {
      writeFileSync(join(root, `services/${folder}/src`, name), `// ${folder} ${name}`);
    }
  }
  cpSync(resolve(import.meta.dirname, '../../../test.sh'), join(root, 'test.sh'));
});
afterEach(() => rmSync(root, { recursive: true }));

// The function of test.sh that computes it, run by itself.
const hashInBash = () =>
  execFileSync(
    'bash',
    ['-c', `eval "$(sed -n '/sha256sum/p;/^hash_source()/,/^}/p' test.sh)"; hash_source invoice-app`],
    {
      cwd: root,
      encoding: 'utf8',
    },
  ).trim();

test('is what test.sh computes, whatever the names', () => {
  expect(hashSource(root, 'invoice-app')).toMatch(/^[0-9a-f]{64}$/);
  expect(hashSource(root, 'invoice-app')).toBe(hashInBash());
});

test.each([
  ['services/kit/src/a.ts', true],
  ['services/invoice-app/src/deep/new.ts', true],
  ['services/invoice-app/src/a.test.ts', false],
  ['services/invoice-app/package.json', false],
])('after a change of %s it is another: %s', (path, changes) => {
  const before = hashSource(root, 'invoice-app');
  writeFileSync(join(root, path), 'changed');
  expect(hashSource(root, 'invoice-app') !== before).toBe(changes);
  expect(hashSource(root, 'invoice-app')).toBe(hashInBash());
});
