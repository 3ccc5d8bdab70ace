// @module-tag slow
import { execFileSync, spawnSync } from 'node:child_process';
import * as fs from 'node:fs/promises';
import path from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { changesIn, copyTree, removeTree } from '../tests/support/tree.ts';

const hasKustomize = spawnSync('kustomize', ['version']).status === 0;

let copy: string;
beforeAll(async () => {
  copy = await copyTree();
}, 60_000);
afterAll(() => removeTree(copy));
beforeEach(() => {
  git('checkout', '--quiet', '.');
  git('clean', '-d', '--force', '--quiet');
});

// Without the variables that vitest sets for its own processes.
const env = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => !/^(NO)?VITE|^NODE_ENV$/.test(name)),
);

function run(command: string, ...args: string[]) {
  return spawnSync(command, args, { cwd: copy, env, encoding: 'utf8' });
}

function git(...args: string[]): string {
  return execFileSync('git', args, { cwd: copy, encoding: 'utf8' });
}

const refunds = { NAME: 'refunds', PORT: '8083', TEAM: '' };

function makeService(variables: Record<string, string> = {}) {
  const own = { ...env, ...refunds, ...variables };
  return spawnSync(process.execPath, ['--disable-warning=ExperimentalWarning', 'scripts/new-service.ts'], {
    cwd: copy,
    env: own,
    encoding: 'utf8',
  });
}

async function edit(file: string, from: string, to: string): Promise<void> {
  const before = await fs.readFile(path.join(copy, file), 'utf8');
  expect(before).toContain(from);
  await fs.writeFile(path.join(copy, file), before.replace(from, to));
}

const read = (file: string) => fs.readFile(path.join(copy, file), 'utf8');

/** Returns the lines added to a file, and expects that none was removed. */
function added(file: string): string[] {
  const lines = git('diff', '--unified=0', file).split('\n').slice(4);
  expect(lines.filter((line) => line.startsWith('-'))).toEqual([]);
  return lines.filter((line) => line.startsWith('+')).map((line) => line.slice(1));
}

test('creates a folder, adds a line to each list, and prints the next steps', async () => {
  const { status, stdout, stderr } = makeService({ TEAM: 'money@example.com' });
  expect(stderr).toBe('');
  expect(status).toBe(0);
  expect(stdout).toContain('http://127.0.0.1:8083/notes');
  expect(stdout.trim().split('\n')).toHaveLength(5);
  expect(changesIn(copy)).toEqual([
    ' M k8s/kustomization.yaml',
    ' M kustomize/base/kustomization.yaml',
    ' M package-lock.json',
    '?? services/refunds/deploy/kustomization.yaml',
    '?? services/refunds/deploy/service.yaml',
    '?? services/refunds/namespace/kustomization.yaml',
    '?? services/refunds/namespace/tenant.yaml',
    '?? services/refunds/package.json',
    '?? services/refunds/src/main.ts',
    '?? services/refunds/src/service.test.ts',
    '?? services/refunds/src/service.ts',
  ]);
  expect(added('kustomize/base/kustomization.yaml')).toEqual(['  - ../../services/refunds/deploy']);
  expect(added('k8s/kustomization.yaml')).toEqual(['  - ../services/refunds/namespace']);
  expect(await read('services/refunds/deploy/service.yaml')).toMatch(
    /\n {2}name: refunds\n {2}port: '8083'\n/,
  );
  expect(await read('services/refunds/namespace/tenant.yaml')).toMatch(
    /\n {2}name: refunds\n {2}team: money@example.com\n/,
  );
  const folder = spawnSync('grep', ['-r', 'new-service', 'services/refunds'], {
    cwd: copy,
    encoding: 'utf8',
  });
  expect(folder.stdout).toBe('');
});

test('writes the lockfile that npm would write', async () => {
  makeService();
  const entries = async () => {
    const { packages } = JSON.parse(await read('package-lock.json'));
    return {
      names: Object.keys(packages),
      own: packages['services/refunds'],
      link: packages['node_modules/@payloop/refunds'],
    };
  };
  const before = await entries();
  expect(added('package-lock.json')).toHaveLength(13);
  expect(before.link).toEqual({ resolved: 'services/refunds', link: true });
  // Other entries may change: npm 9 to 11.3 drops `libc`.
  // On Node 20 npm warns about packages that only ever run on npm's Node 24, as scripts/install.sh explains.
  const npm = spawnSync('npm', ['install', '--package-lock-only', '--offline', '--loglevel=error'], {
    cwd: copy,
    env: { ...env, PATH: env.HOST_PATH ?? env.PATH },
    encoding: 'utf8',
  });
  expect(npm).toMatchObject({ status: 0, stderr: '' });
  expect(await entries()).toEqual(before);
});

test('writes name, port and team where they belong, in the style of prettier', async () => {
  const name = `a8080-${'b'.repeat(44)}`;
  expect(makeService({ NAME: name, PORT: '54321', TEAM: 'new-service' })).toMatchObject({ status: 0 });
  const folder = `services/${name}`;
  const dataOf = async (file: string) => parse(await read(`${folder}/${file}`)).data;
  expect(await dataOf('deploy/service.yaml')).toEqual({ name, port: '54321', release: '1.0.0' });
  expect(await dataOf('namespace/tenant.yaml')).toEqual({ name, team: 'new-service' });
  const style = run('prettier', '--check', folder, 'kustomize/base', 'k8s');
  expect(style).toMatchObject({ status: 0 });
});

test.skipIf(!hasKustomize)(
  'deploys the objects that every service has, in a namespace like the others',
  () => {
    const folders = ['kustomize/overlays/prod', 'k8s'];
    const objects = () =>
      folders.map((folder) => run('kustomize', 'build', folder).stdout.match(/^kind: /gm)?.length ?? 0);
    const [before, namespaces] = objects() as [number, number];
    makeService();
    expect(objects()).toEqual([before + 8, namespaces + 7]);
  },
);

test('leaves no trace once the service is removed', async () => {
  makeService();
  await fs.rm(path.join(copy, 'services/refunds'), { recursive: true });
  await edit('kustomize/base/kustomization.yaml', '  - ../../services/refunds/deploy\n', '');
  await edit('k8s/kustomization.yaml', '  - ../services/refunds/namespace\n', '');
  run('npm', 'install', '--package-lock-only', '--offline');
  // npm 9 to 11.3 drops this field from every package.
  const withoutLibc = (text: string): object =>
    JSON.parse(text, (key, value) => (key === 'libc' ? undefined : value));
  expect(withoutLibc(await read('package-lock.json'))).toEqual(
    withoutLibc(git('show', 'HEAD:package-lock.json')),
  );
  expect(changesIn(copy).filter((line) => line !== ' M package-lock.json')).toEqual([]);
});

describe('refuses, in one line and without a change,', () => {
  test.each([
    [{ NAME: '' }, 'NAME is missing: make service NAME=… PORT=…'],
    [
      { NAME: 'Refunds' },
      `NAME must be at most 50 of a-z, 0-9 and -, start with a letter and not end with -, not "Refunds"`,
    ],
    [{ NAME: '../x' }, /not "\.\.\/x"$/],
    [{ NAME: '1st' }, /start with a letter/],
    [{ NAME: 'refunds-' }, /not end with -/],
    [{ NAME: 'a\nb' }, /not "a\\nb"$/],
    [{ NAME: 'a'.repeat(51) }, /at most 50/],
    [{ NAME: 'kube-system' }, 'NAME must not be kube-system, which is an existing namespace'],
    [{ NAME: 'monitoring' }, /an existing namespace/],
    [{ NAME: 'up' }, /a part of make up/],
    [{ NAME: 'pg-refunds' }, /a role or a database of Postgres/],
    [{ NAME: 'invoice-app-inspect' }, /part of the name of a variable/],
    [{ NAME: 'chassis' }, /a package of this repository/],
    [{ NAME: 'on' }, 'NAME must not be on, which YAML does not read as text'],
    [{ NAME: 'invoice-app' }, 'services/invoice-app already exists'],
    [{ PORT: '' }, 'PORT is missing, and 8083 is free: make service NAME=refunds PORT=8083'],
    [{ PORT: '1023' }, `PORT must be a whole number from 1024 to 64387, not "1023"`],
    [{ PORT: '64388' }, /from 1024 to 64387/],
    [{ PORT: '08083' }, /not "08083"$/],
    [{ PORT: '8083.5' }, /not "8083.5"$/],
    [{ PORT: '8082' }, "PORT 8082 is payment-provider's: 8083 is free"],
    [{ PORT: '8443' }, 'PORT 8443 is a host port of ctlptl.yaml: 8083 is free'],
    [{ PORT: '9091' }, /metrics/],
    [{ PORT: '9230' }, 'PORT 9230 is the inspector port of payment-provider: 8083 is free'],
    [{ PORT: '10350' }, "PORT 10350 is Tilt's: 8083 is free"],
    [{ PORT: '25432' }, /local Postgres/],
    [{ PORT: '6934' }, "PORT 6934 has its inspector at 8082, which is payment-provider's: 8083 is free"],
    [{ TEAM: 'system:masters' }, /^TEAM must be the name of a group, .*, not "system:masters"$/],
    [{ TEAM: 'a b' }, /^TEAM .* "a b"$/],
    [{ TEAM: 'true' }, /^TEAM .* "true"$/],
  ])('%j', (variables, line) => {
    const { status, stdout, stderr } = makeService(variables);
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
    expect(stderr).toMatch(/^make service: .*\n$/);
    const said = stderr.slice('make service: '.length, -1);
    expect(said).toMatch(line);
    expect(changesIn(copy)).toEqual([]);
  });

  test('a service that exists in part', async () => {
    const refused = { status: 1, stdout: '' };
    await edit(
      'k8s/kustomization.yaml',
      '  - platform\n',
      '  - platform\n  - ../services/refunds/namespace\n',
    );
    expect(makeService()).toMatchObject({
      ...refused,
      stderr: 'make service: k8s/kustomization.yaml already lists refunds\n',
    });
    expect(changesIn(copy)).toEqual([' M k8s/kustomization.yaml']);
    await edit('k8s/kustomization.yaml', '  - ../services/refunds/namespace\n', '');
    await fs.mkdir(path.join(copy, 'services/refunds'));
    await fs.writeFile(path.join(copy, 'services/refunds/notes.txt'), 'mine');
    expect(makeService()).toMatchObject({
      ...refused,
      stderr: 'make service: services/refunds already exists\n',
    });
    expect(await read('services/refunds/notes.txt')).toBe('mine');
    expect(changesIn(copy)).toEqual(['?? services/refunds/notes.txt']);
  });

  test('a service that cannot be written completely', async () => {
    const modules = path.join(copy, 'node_modules/@payloop');
    await fs.rename(modules, `${modules}.away`);
    try {
      const { status, stderr } = makeService();
      expect(status).toBe(1);
      expect(stderr).toMatch(/^make service: ENOENT: .*\n$/);
      expect(changesIn(copy)).toEqual([]);
    } finally {
      await fs.rename(`${modules}.away`, modules);
    }
  });
});
