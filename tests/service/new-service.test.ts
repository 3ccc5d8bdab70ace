// Follows a developer who adds a service: make service, make up without Docker, an edit, and the tests.
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs/promises';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { freePort } from '../../local/ports.ts';
import { processesIn, Running } from '../install/running.ts';
import { changesIn, copyTree, removeTree } from '../support/tree.ts';

const servingMs = 60_000;
const testMs = 30_000;

let copy: string;
let env: NodeJS.ProcessEnv;
beforeAll(async () => {
  copy = await copyTree();
  env = { ...process.env, TMPDIR: path.dirname(copy), MODE: 'local', OVERLAY: 'dev', LOG_LEVEL: '' };
  for (const name of ['INVOICE_APP', 'PAYMENT_PROVIDER', 'REFUNDS', 'POSTGRES']) {
    env[`${name}_PORT`] = String(await freePort());
  }
  // Unset the variables of the make and the vitest that run this file; otherwise the children below join them.
  for (const name of Object.keys(env)) if (/^(MAKE|MFLAGS|VITEST|NODE_ENV$)/.test(name)) delete env[name];
});
afterAll(() => removeTree(copy));

test('make up serves a new service and each edit of it, and the service passes all checks', async () => {
  const made = spawnSync('make', ['service', 'NAME=refunds', 'PORT=8083'], {
    cwd: copy,
    env,
    encoding: 'utf8',
  });
  expect(made).toMatchObject({ status: 0, stderr: '' });
  const url = `http://127.0.0.1:${env.REFUNDS_PORT}`;
  const source = path.join(copy, 'services/refunds/src/service.ts');
  const good = await fs.readFile(source, 'utf8');
  const edited = good.replace('ORDER BY id DESC', 'ORDER BY id');
  expect(edited).not.toBe(good);

  const up = new Running('make', ['up'], { cwd: copy, env });
  try {
    await up.prints(/^up +\| refunds is at http:\/\/127\.0\.0\.1:/m, servingMs);
    expect(up.output).toContain(`refunds is at ${url}`);
    await up.prints(/^test +\| passed, 8 checks/m, testMs);
    await add(url, 'first');
    await add(url, 'second');
    expect(await texts(url)).toEqual(['second', 'first']);

    // The payment test waits until the new code is served.
    const before = up.output.length;
    await fs.writeFile(source, edited);
    await expect.poll(() => up.output.slice(before), { timeout: testMs }).toMatch(/; served after \d+ ms$/m);
    expect(await texts(url)).toEqual(['first', 'second']);

    const broken = up.output.length;
    await fs.writeFile(source, `${good}const = ;\n`);
    await expect
      .poll(() => up.output.slice(broken), { timeout: testMs })
      .toMatch(/^test +\| payment test failed: .*: refunds does not start/m);
    expect(await texts(url)).toEqual(['first', 'second']);
  } finally {
    up.signal('SIGINT');
    await up.ended();
  }
  expect(await processesIn(copy)).toEqual([]);

  const statusOf = (command: string, ...args: string[]) =>
    spawnSync(path.join(copy, 'node_modules/.bin', command), args, { cwd: copy, env }).status;
  await fs.writeFile(source, edited);
  expect(statusOf('vitest', 'run', 'services/refunds')).toBe(1);
  await fs.writeFile(source, good);
  expect(statusOf('vitest', 'run', 'services/refunds')).toBe(0);
  expect(statusOf('tsc', '--noEmit')).toBe(0);
  expect(statusOf('oxlint', '--type-aware', '--quiet', 'services/refunds')).toBe(0);
  expect(statusOf('prettier', '--check', 'services/refunds')).toBe(0);
  expect(changesIn(copy).filter((line) => !line.startsWith('?? services/refunds/'))).toEqual([
    ' M k8s/kustomization.yaml',
    ' M kustomize/base/kustomization.yaml',
    ' M package-lock.json',
  ]);
});

async function add(url: string, text: string): Promise<void> {
  const response = await fetch(`${url}/notes`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ text }),
  });
  expect(response.status).toBe(201);
}

async function texts(url: string): Promise<string[]> {
  const response = await fetch(`${url}/notes`);
  const notes = (await response.json()) as { text: string }[];
  return notes.map(({ text }) => text);
}
