import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { expect, test } from 'vitest';
import { mutants } from './mutants.ts';

const root = resolve(import.meta.dirname, '../..');

// `make mutants` would find this too, but takes minutes.
test.each(mutants.map(({ name, changes }) => ({ name, changes })))(
  'the mutant applies: $name',
  ({ changes }) => {
    for (const [file, from] of changes) {
      expect(readFileSync(join(root, file), 'utf8').split(from)).toHaveLength(2);
    }
  },
);
