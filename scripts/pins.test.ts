import { execFileSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { expect, test } from 'vitest';
import { parse } from 'yaml';

/** Checks that versions outside package.json are exact, agree where they have to, and are known to Renovate. */

const root = path.resolve(import.meta.dirname, '..');
const read = (name: string) => readFile(path.join(root, name), 'utf8');
const files = execFileSync('git', ['ls-files'], { cwd: root, encoding: 'utf8' }).split('\n');

interface Manager {
  managerFilePatterns: string[];
  matchStrings: string[];
}
const { customManagers } = JSON.parse(await read('renovate.json')) as { customManagers: Manager[] };

interface Step {
  uses?: string;
  with?: Record<string, unknown>;
}
const workflow = await read('.github/workflows/ci.yml');
const { jobs } = parse(workflow) as { jobs: Record<string, { steps: Step[] }> };
const steps = Object.values(jobs).flatMap((job) => job.steps);

test.each(customManagers)('Renovate finds one version in $managerFilePatterns', async (manager) => {
  const patterns = manager.managerFilePatterns.map((pattern) => new RegExp(pattern.slice(1, -1)));
  const matching = files.filter((file) => patterns.some((pattern) => pattern.test(file)));
  expect(matching).toHaveLength(1);
  const text = await read(matching[0]!);
  const found = manager.matchStrings.flatMap((each) => [...text.matchAll(new RegExp(each, 'g'))]);
  expect(found).toHaveLength(1);
  expect(found[0]!.groups?.currentValue).toMatch(/^v?\d+\.\d+\.\d+$/);
});

test('every action is pinned by commit, with its version in a comment', () => {
  const used = workflow.split('\n').filter((line) => /^\s*(- )?uses:/.test(line));
  expect(used).toHaveLength(steps.filter(({ uses }) => uses !== undefined).length);
  expect(used.filter((line) => !/uses: [\w-]+\/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$/.test(line))).toEqual(
    [],
  );
});

test('the pipeline uses the same version of mise as scripts/tools.ts', async () => {
  const version = /miseVersion = '([^']+)'/.exec(await read('scripts/tools.ts'))?.[1];
  expect(version).toBeDefined();
  const used = steps.filter(({ uses }) => uses?.startsWith('jdx/mise-action@'));
  expect(used.length).toBeGreaterThan(0);
  expect(used.map((step) => step.with?.version)).toEqual(used.map(() => version));
});

test('no checkout keeps its token', () => {
  const used = steps.filter(({ uses }) => uses?.startsWith('actions/checkout@'));
  expect(used.length).toBeGreaterThan(0);
  expect(used.filter((step) => step.with?.['persist-credentials'] !== false)).toEqual([]);
});
