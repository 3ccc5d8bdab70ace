import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { parseAllDocuments } from 'yaml';
import { readServices } from '../../scripts/services.ts';
import { describeFlow, readFlows } from '../cluster/flows.ts';

/** Finds, before the cluster tests do: a policy that no flow tries, and a flow that names a missing policy. */

const root = path.resolve(import.meta.dirname, '../..');
const hasKustomize = spawnSync('kustomize', ['version']).status === 0;

interface Manifest {
  kind: string;
  metadata: { name: string; namespace: string };
  spec: { podSelector: object; egress?: object[] };
}

function render(folder: string): Manifest[] {
  const text = execFileSync('kustomize', ['build', path.join(root, folder)], { encoding: 'utf8' });
  return parseAllDocuments(text).map((document) => document.toJS() as Manifest);
}

function policiesOf(folders: string[]): string[] {
  return folders
    .flatMap(render)
    .filter(({ kind }) => kind === 'NetworkPolicy')
    .map(({ metadata: { namespace, name } }) => `${namespace}/${name}`);
}

/** The cluster tests try this policy without a flow, because no pod can stand in for the API server. */
const withoutFlow = 'metrics-server/from-api-server';

describe.skipIf(!hasKustomize).each([
  ['dev', ['k8s', 'k8s/local', 'kustomize/overlays/dev']],
  ['prod', ['k8s', 'k8s/local', 'k8s/local/edge', 'kustomize/overlays/prod']],
])('%s', (overlay, folders) => {
  const flows = readFlows(overlay, 'url');
  // A denied flow may name a whole namespace, without a slash, instead of one policy.
  const named = new Set(flows.flatMap(({ by }) => by).filter((policy) => policy.includes('/')));

  test('every policy has a flow in deploy/flows.yaml of its service, and every flow names policies that exist', () => {
    const policies = policiesOf(folders).filter((policy) => policy !== withoutFlow);
    expect([...named].toSorted()).toEqual(policies.toSorted());
  });

  // A policy without a selector would apply to every pod of its namespace.
  test('every policy selects the pods of its own service, except default-deny', () => {
    const others = folders.flatMap(render).filter(({ kind, metadata: { name, namespace }, spec }) => {
      if (kind !== 'NetworkPolicy') return false;
      const matchLabels = { 'app.kubernetes.io/name': namespace === 'ingress' ? 'traefik' : namespace };
      const own = name === 'default-deny' ? {} : { matchLabels };
      return JSON.stringify(spec.podSelector) !== JSON.stringify(own);
    });
    expect(others.map(({ metadata: { namespace, name } }) => `${namespace}/${name}`)).toEqual([]);
  });

  test('no flow is listed twice, or as both allowed and denied', () => {
    const ways = flows.map((flow) => describeFlow({ ...flow, reaches: true }));
    expect(ways.filter((way, n) => ways.indexOf(way) !== n)).toEqual([]);
  });

  test('a flow between two services has a policy in each namespace', () => {
    const services = readServices().map(({ name }) => name);
    const between = flows.filter(
      ({ from, to, reaches }) => reaches && from.service && services.some((name) => to === `${name}:http`),
    );
    expect(between.length).toBeGreaterThan(0);
    for (const flow of between) {
      const namespaces = flow.by.map((policy) => policy.split('/')[0]!);
      const wanted = [flow.from.namespace, flow.to.split(':')[0]!];
      expect({ to: flow.to, namespaces: namespaces.toSorted() }).toEqual({
        to: flow.to,
        namespaces: wanted.toSorted(),
      });
    }
  });
});

test.skipIf(!hasKustomize)('tracing lets every service reach the collector, and nothing else', () => {
  // Hidden: otherwise a running `make up` would report it as a change.
  const folder = mkdtempSync(path.join(root, 'kustomize/.combination.'));
  try {
    const kustomization = 'resources: [../overlays/prod]\ncomponents: [../components/tracing]\n';
    writeFileSync(path.join(folder, 'kustomization.yaml'), kustomization);
    const before = render('kustomize/overlays/prod');
    const after = render(path.relative(root, folder));
    for (const { name } of readServices()) {
      const find = (manifests: Manifest[]) =>
        manifests.filter(({ kind, metadata }) => kind === 'NetworkPolicy' && metadata.namespace === name);
      const rules = (manifests: Manifest[]) =>
        find(manifests)
          .flatMap(({ spec }) => spec.egress ?? [])
          .map((rule) => JSON.stringify(rule));
      const added = rules(after).filter((rule) => !rules(before).includes(rule));
      expect(added.map((rule) => JSON.parse(rule))).toEqual([
        {
          to: [
            {
              namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': 'monitoring' } },
              podSelector: { matchLabels: { 'app.kubernetes.io/name': 'otel-collector' } },
            },
          ],
          ports: [{ port: 4318 }],
        },
      ]);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});
