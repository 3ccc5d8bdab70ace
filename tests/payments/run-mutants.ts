// Removes one guard at a time, each in a copy of its own. Each test file that a mutant names must fail.
import { execFile } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { copyTree, removeTree } from '../support/tree.ts';
import { mutants, type Mutant } from './mutants.ts';

const root = resolve(import.meta.dirname, '../..');

/** Applies the changes of a mutant. @returns why they do not apply, undefined if they do */
function mutate(folder: string, { changes }: Mutant): string | undefined {
  for (const [file, from, to] of changes) {
    const path = join(folder, file);
    const parts = readFileSync(path, 'utf8').split(from);
    if (parts.length !== 2) return `'${from}' occurs ${parts.length - 1} times in ${file}`;
    writeFileSync(path, parts.join(to));
  }
  return undefined;
}

interface Report {
  testResults: {
    name: string;
    assertionResults: { status: string; fullName: string }[];
  }[];
}

/** Returns the first failed test of each file; undefined for a file without one. */
async function runTests(
  folder: string,
  files: string[],
  ...options: string[]
): Promise<Map<string, string | undefined>> {
  const out = join(folder, 'report.json');
  rmSync(out, { force: true });
  const command = ['run', '--reporter=json', `--outputFile=${out}`, ...options, ...files];
  await new Promise((done) => {
    const env = { ...process.env, MODEL_SHRINK: 'off' };
    execFile(join(root, 'node_modules/.bin/vitest'), command, { cwd: folder, env, maxBuffer: 2 ** 26 }, done);
  });
  const { testResults } = JSON.parse(readFileSync(out, 'utf8')) as Report;
  const failures = new Map<string, string | undefined>();
  for (const file of files) {
    const result = testResults.find(({ name }) => name.endsWith(file));
    // A file that fails to load proves nothing.
    if (!result || result.assertionResults.length === 0) throw new Error(`${file} did not run`);
    failures.set(file, result.assertionResults.find(({ status }) => status === 'failed')?.fullName);
  }
  return failures;
}

/** Runs each file alone, up to its first failure. */
async function runToFirstFailure(folder: string, files: string[]): Promise<Map<string, string | undefined>> {
  const failures = new Map<string, string | undefined>();
  for (const file of files) {
    for (const [name, failure] of await runTests(folder, [file], '--bail=1')) failures.set(name, failure);
  }
  return failures;
}

/** Returns whether each test file of the mutant failed, and a line that says so. */
async function tryMutant(mutant: Mutant): Promise<[boolean, string]> {
  const folder = await copyTree();
  try {
    const problem = mutate(folder, mutant);
    if (problem !== undefined) return [false, `DOES NOT APPLY  ${mutant.name}: ${problem}`];
    const failures = await runToFirstFailure(folder, mutant.tests);
    const passed = [...failures].filter(([, failure]) => failure === undefined).map(([file]) => file);
    if (passed.length > 0) return [false, `SURVIVED  ${mutant.name}: ${passed.join(', ')}`];
    return [true, `caught  ${mutant.name}: ${[...failures.values()].join('; ')}`];
  } finally {
    await removeTree(folder);
  }
}

/** Finds the test files that fail on unchanged code. They would fail for every mutant, too. */
async function findFailing(files: string[]): Promise<string[]> {
  const folder = await copyTree();
  try {
    const failures = await runTests(folder, files);
    return files.filter((file) => failures.get(file) !== undefined);
  } finally {
    await removeTree(folder);
  }
}

function giveUp(reason: string): void {
  console.log(`mutants: none tried, ${reason}`);
  process.exitCode = 1;
}

async function main(): Promise<void> {
  const start = performance.now();
  const only = process.env.ONLY ?? '';
  const chosen = mutants.filter(({ name }) => name.includes(only));
  if (chosen.length === 0) return giveUp(`no name contains ${only}`);
  const failing = await findFailing([...new Set(chosen.flatMap(({ tests }) => tests))]);
  if (failing.length > 0) return giveUp(`tests fail without a change: ${failing.join(', ')}`);
  let bad = 0;
  const queue = chosen.values();
  const worker = async () => {
    for (const mutant of queue) {
      const [isCaught, result] = await tryMutant(mutant);
      if (!isCaught) bad += 1;
      console.log(result);
    }
  };
  // Three at a time: each one starts a Postgres and spends much of its time waiting. More would fail tests by their load.
  await Promise.all([worker(), worker(), worker()]);
  const seconds = Math.round((performance.now() - start) / 1000);
  console.log(`mutants: ${chosen.length}, ${bad} not caught, ${seconds} s`);
  process.exitCode = bad === 0 ? 0 : 1;
}

await main();
