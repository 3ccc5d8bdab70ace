// @module-tag slow
import * as fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { watchForRestart } from './changes.ts';

let root: string;
let said: string[];
let stop: () => void;
const write = (file: string, content: string) => {
  fs.mkdirSync(path.dirname(path.join(root, file)), { recursive: true });
  fs.writeFileSync(path.join(root, file), content);
};

beforeEach(() => {
  root = fs.mkdtempSync(path.join(os.tmpdir(), 'payloop-changes-'));
  for (const file of ['package.json', 'libraries/chassis/dev/serve.ts', 'libraries/chassis/src/run.ts'])
    write(file, 'one');
  said = [];
  stop = watchForRestart(root, (text) => said.push(text));
});
afterEach(() => {
  stop();
  fs.rmSync(root, { recursive: true });
});

test.each([
  ['package.json', 'to install the packages'],
  ['services/refunds/package.json', 'to install the packages'],
  ['libraries/chassis/package.json', 'to install the packages'],
  ['services/refunds/deploy/service.yaml', 'to apply the change'],
  ['libraries/chassis/dev/serve.ts', 'to apply the change'],
  ['local/new.ts', 'to apply the change'],
])('reports each change of %s once, and tells to restart make up', async (file, why) => {
  write(file, 'two');
  const line = `${file} has changed: stop make up (Ctrl-C) and start it again ${why}`;
  await expect.poll(() => said, { timeout: 2_500 }).toEqual([line]);
  await delay(1_200);
  expect(said).toEqual([line]);
  write(file, 'three');
  await expect.poll(() => said, { timeout: 2_500 }).toEqual([line, line]);
});

test('reports a file that is removed, but not that it is restored unchanged', async () => {
  fs.rmSync(path.join(root, 'package.json'));
  await expect.poll(() => said, { timeout: 2_500 }).toHaveLength(1);
  write('package.json', 'one');
  await delay(1_200);
  expect(said).toHaveLength(1);
});

test('does not report reloaded sources, tests and hidden files', async () => {
  for (const file of [
    'libraries/chassis/src/run.ts',
    'libraries/chassis/dev/x.test.ts',
    'local/._x.ts',
    'README.md',
  ])
    write(file, 'two');
  await delay(1_500);
  expect(said).toEqual([]);
});
