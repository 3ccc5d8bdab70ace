// @module-tag slow
import { execFileSync, spawnSync } from 'node:child_process';
import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeEach, expect, test } from 'vitest';

const root = path.resolve(import.meta.dirname, '..');
const hasKustomize = spawnSync('kustomize', ['version']).status === 0;
const folders: string[] = [];

/** A repository with the files that make review reads, without the user's git configuration. */
let clone: string;
beforeEach(async () => {
  clone = await fs.mkdtemp(path.join(tmpdir(), 'payloop-review-'));
  folders.push(clone);
  for (const name of ['kustomize', 'services', 'scripts/review.sh', 'scripts/scanners.sh', 'Dockerfile']) {
    await fs.cp(path.join(root, name), path.join(clone, name), { recursive: true });
  }
  git('init', '--quiet', '--initial-branch=main');
  git('add', '.');
  git('commit', '--quiet', '--message=base');
});
afterAll(() => Promise.all(folders.map((folder) => fs.rm(folder, { recursive: true }))));

const env = {
  ...process.env,
  GIT_CONFIG_GLOBAL: '/dev/null',
  GIT_AUTHOR_NAME: 'A',
  GIT_AUTHOR_EMAIL: 'a@example.com',
  GIT_COMMITTER_NAME: 'A',
  GIT_COMMITTER_EMAIL: 'a@example.com',
};

function git(...args: string[]): void {
  execFileSync('git', args, { cwd: clone, env });
}

function review(variables: NodeJS.ProcessEnv = {}): {
  status: number | null;
  stdout: string;
  stderr: string;
} {
  return spawnSync('scripts/review.sh', { cwd: clone, env: { ...env, ...variables }, encoding: 'utf8' });
}

async function edit(file: string, change: (text: string) => string): Promise<void> {
  const name = path.join(clone, file);
  const before = await fs.readFile(name, 'utf8');
  const after = change(before);
  expect(after).not.toBe(before);
  await fs.writeFile(name, after);
}

/** Returns the lines between a heading and the next one. */
function section(text: string, heading: string): string[] {
  const [, found = ''] = text.split(`== ${heading}\n`);
  return found.split('\n== ')[0]!.split('\n');
}

test.skipIf(!hasKustomize)('prints nothing if production does not change', async () => {
  await edit('kustomize/overlays/dev/environment.yaml', (text) => text.replace('true', 'false'));
  expect(review()).toMatchObject({ status: 0, stdout: '', stderr: '' });
});

test.skipIf(!hasKustomize)('lists new, removed and changed objects', async () => {
  const deploy = 'services/invoice-app/deploy';
  await edit(`${deploy}/service.yaml`, (text) => text.replace('release: 1.0.0', 'release: 1.0.1'));
  await edit(`${deploy}/kustomization.yaml`, (text) => text.replace('  - ingress.yaml\n', ''));
  await edit(`${deploy}/network-policies.yaml`, (text) =>
    text.replace('from-ingress-controller', 'from-another'),
  );
  const { status, stdout } = review();
  expect(status).toBe(0);
  expect(stdout.match(/^== (new|gone|changed): .*$/gm)).toEqual([
    '== changed: Deployment invoice-app.invoice-app',
    '== gone: Ingress invoice-app.invoice-app',
    '== new: NetworkPolicy invoice-app.from-another',
    '== gone: NetworkPolicy invoice-app.from-ingress-controller',
  ]);
  const changes = section(stdout, 'changed: Deployment invoice-app.invoice-app');
  expect(changes.filter((line) => /^[+-]/.test(line)).map((line) => line.replace(/ +/g, ' '))).toEqual([
    '- app.kubernetes.io/version: 1.0.0',
    '+ app.kubernetes.io/version: 1.0.1',
    '- app.kubernetes.io/version: 1.0.0',
    '+ app.kubernetes.io/version: 1.0.1',
    '- image: payloop/invoice-app:1.0.0',
    '+ image: payloop/invoice-app:1.0.1',
  ]);
  expect(section(stdout, 'gone: Ingress invoice-app.invoice-app')).toContain('-kind: Ingress');
});

test.skipIf(!hasKustomize)('compares with the revision in BASE', async () => {
  await edit('services/invoice-app/deploy/ingress.yaml', (text) =>
    text.replaceAll('example.com', 'example.org'),
  );
  git('commit', '--quiet', '--all', '--message=change');
  expect(review().stdout).toBe('');
  expect(review({ BASE: 'HEAD~1' }).stdout).toContain('== changed: Ingress invoice-app.invoice-app\n');
  expect(review({ BASE: 'nothing' })).toMatchObject({
    status: 1,
    stdout: '',
    stderr: 'review: BASE must be a revision that git knows, not nothing\n',
  });
});

/** Stands in for a scanner: its findings are the autoscalers' targets. */
const scanner = `#!/bin/sh
grep -n averageUtilization "$3" | sed 's/^[0-9]*: */[WARNING] /'
exit 1
`;

test.skipIf(!hasKustomize)('shows new and resolved findings', async () => {
  const tools = path.join(clone, 'tools');
  await fs.mkdir(tools);
  await fs.writeFile(path.join(tools, 'kube-score'), scanner, { mode: 0o755 });
  await edit('kustomize/service/autoscaling.yaml', (text) =>
    text.replace('averageUtilization: 150', 'averageUtilization: 151'),
  );
  const { stdout } = review({ PATH: `${tools}:${process.env.PATH}` });
  expect(section(stdout, 'findings of kube-score')).toContain('+[WARNING] averageUtilization: 151');
  expect(stdout).toContain('== checkov: not installed');
});

test.skipIf(!hasKustomize)('names missing scanners', async () => {
  const tools = path.join(clone, 'tools');
  await fs.mkdir(tools);
  for (const tool of [
    'bash',
    'git',
    'kustomize',
    'awk',
    'sed',
    'sort',
    'ls',
    'cmp',
    'tar',
    'mktemp',
    'mkdir',
    'rm',
    'dirname',
    'tr',
  ]) {
    const found = execFileSync('sh', ['-c', `command -v ${tool}`], { encoding: 'utf8' }).trim();
    await fs.symlink(found, path.join(tools, tool));
  }
  await edit('services/invoice-app/deploy/ingress.yaml', (text) =>
    text.replaceAll('example.com', 'example.org'),
  );
  const { status, stdout } = review({ PATH: tools });
  expect(status).toBe(0);
  expect(stdout).toContain('== changed: Ingress');
  expect(stdout).toMatch(/^== kube-score: not installed$/m);
  expect(stdout).toMatch(/^== checkov: not installed/m);
});
