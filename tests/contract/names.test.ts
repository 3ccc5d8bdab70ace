import { readdirSync, readFileSync } from 'node:fs';
import { join, matchesGlob, relative, resolve } from 'node:path';
import { expect, test } from 'vitest';
import { readServices } from '../../scripts/services.ts';

const root = resolve(import.meta.dirname, '../..');

/** Where services may be named, and why. A service that nobody pays with needs none of these. */
const named: Record<string, string> = {
  'kustomize/base/kustomization.yaml': 'which services are deployed',
  'k8s/kustomization.yaml': 'which services have a namespace',
  'package-lock.json': 'npm writes it',
  'services/*/**': 'a service names those that it talks to',
  'test.sh': 'the payment test',
  'tests/**': 'tests of payments, and examples of services',
  '**/*.test.{ts,yaml}': 'the same',
  'bench/**': 'what is measured: payments, and a save of each of these two',
  'docs/**': 'documentation',
  '*.md': 'documentation',
  '.github/CODEOWNERS': 'which team reviews which service',
  'kustomize/components/flaky-provider/*': 'faults of payments',
  'kustomize/components/node-port/*': 'the way in: to what people and the payment test talk to',
  'kustomize/overlays/prod-local/*': 'the same: its name on this machine',
  'k8s/local/edge/**': 'the same: its Ingress and certificate',
  'ctlptl.yaml': 'the same: its port',
  Tiltfile: 'the same: its links and buttons',
  'local/up.ts': 'the same: its address, for the payment test',
  'k8s/monitoring/{alerts.yaml,dashboard.json}': 'alerts about payments',
  Dockerfile: 'an example',
  'package.json': 'the test of a page',
  'scripts/check.sh': 'the types of a page',
};

/** What is the project's own: neither installed, built nor hidden, as a copy without git has it too. */
function* filesIn(folder: string): Generator<string> {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (['node_modules', 'dist', 'release.yaml', '.git', '.payloop'].includes(entry.name)) continue;
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* filesIn(path);
    else if (entry.isFile() && !/\.(png|svg)$/.test(entry.name)) yield relative(root, path);
  }
}

test('no file names a service but for payments: the list is read, never repeated', () => {
  const names = readServices().map(({ name }) => name);
  const isAllowed = (file: string, name: string) =>
    file.startsWith(`services/${name}/`) || Object.keys(named).some((glob) => matchesGlob(file, glob));
  const found = [...filesIn(root)].filter((file) => {
    const text = readFileSync(join(root, file), 'latin1');
    return names.some((name) => text.includes(name) && !isAllowed(file, name));
  });
  expect(found).toEqual([]);
});

test.each(Object.keys(named))('%s is there, and names one', (glob) => {
  const names = readServices().map(({ name }) => name);
  const files = [...filesIn(root)].filter((file) => matchesGlob(file, glob));
  expect(
    files.some((file) => names.some((name) => readFileSync(join(root, file), 'latin1').includes(name))),
  ).toBe(true);
});
