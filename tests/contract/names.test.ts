import { readFileSync } from 'node:fs';
import { join, matchesGlob, resolve } from 'node:path';
import { expect, test } from 'vitest';
import { readServices } from '../../scripts/services.ts';
import { projectFiles } from '../support/tree.ts';

const root = resolve(import.meta.dirname, '../..');

/** The files that may name a service, and why. A service that takes no part in payments needs none of them. */
const named: Record<string, string> = {
  'kustomize/base/kustomization.yaml': 'lists the services to deploy',
  'k8s/kustomization.yaml': 'lists the services that have a namespace',
  'package-lock.json': 'written by npm',
  'services/*/**': 'a service names the services that it calls',
  'test.sh': 'the payment test',
  'tests/**': 'tests of payments, and examples of services',
  '**/*.test.{ts,yaml}': 'tests of payments, and examples of services',
  'bench/**': 'measures payments, and a save in each of the two services',
  'docs/**': 'documentation',
  '*.md': 'documentation',
  '.github/CODEOWNERS': 'which team reviews which service',
  'kustomize/components/flaky-provider/*': 'injects faults into payments',
  'kustomize/components/node-port/*': 'entry point for people and the payment test',
  'kustomize/overlays/prod-local/*': 'entry point: the host name on this machine',
  'k8s/local/edge/**': 'entry point: Ingress and certificate',
  'ctlptl.yaml': 'entry point: the port',
  Tiltfile: 'entry point: links and buttons',
  'local/up.ts': 'entry point: the address for the payment test',
  'k8s/monitoring/{alerts.yaml,dashboard.json}': 'alerts and graphs about payments',
  Dockerfile: 'an example',
  'package.json': 'the page test',
  'scripts/check.sh': 'checks the types of a page',
};

test('no other file names a service: the list of services is read, never repeated', () => {
  const names = readServices().map(({ name }) => name);
  const isAllowed = (file: string, name: string) =>
    file.startsWith(`services/${name}/`) || Object.keys(named).some((glob) => matchesGlob(file, glob));
  const found = [...projectFiles()].filter((file) => {
    const text = readFileSync(join(root, file), 'latin1');
    return names.some((name) => text.includes(name) && !isAllowed(file, name));
  });
  expect(found).toEqual([]);
});

test.each(Object.keys(named))('%s matches a file that names a service', (glob) => {
  const names = readServices().map(({ name }) => name);
  const files = [...projectFiles()].filter((file) => matchesGlob(file, glob));
  expect(
    files.some((file) => names.some((name) => readFileSync(join(root, file), 'latin1').includes(name))),
  ).toBe(true);
});
