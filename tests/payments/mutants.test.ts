import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { expect, test } from 'vitest';
import { mutants } from './mutants.ts';

const root = resolve(import.meta.dirname, '../..');

// `make mutants` takes minutes, and would be the first to say it.
test.each(mutants.map(({ name, changes }) => ({ name, changes })))(
  'the guard is there: $name',
  ({ changes }) => {
    for (const [file, from] of changes) {
      expect(readFileSync(join(root, file), 'utf8').split(from)).toHaveLength(2);
    }
  },
);
