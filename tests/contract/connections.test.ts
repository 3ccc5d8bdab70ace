import { execFileSync, spawnSync } from 'node:child_process';
import path from 'node:path';
import { expect, test } from 'vitest';
import { parseAllDocuments } from 'yaml';
import { readServices } from '../../scripts/services.ts';

/** That the local Postgres has connections, and memory for them, for every pod that an overlay may start. */

const root = path.resolve(import.meta.dirname, '../..');
const hasKustomize = spawnSync('kustomize', ['version']).status === 0;

/** Of a pod: nine in its pools and one for readiness, as `database_connections_max` says. */
const ofPod = 10;
/** Postgres keeps three for its superuser; the others are for whoever looks into the database. */
const reserve = 10;
/** Measured: 1.7 MiB each after a few statements. Postgres itself takes 128 MiB of buffers and some 32 more. */
const memory = { ofConnection: 2, ofPostgres: 160 };

interface Manifest {
  kind: string;
  metadata: { name: string };
  spec: {
    replicas?: number;
    maxReplicas?: number;
    strategy?: { rollingUpdate?: { maxSurge?: number } };
    template: { spec: { containers: { args: string[]; resources: { limits: { memory: string } } }[] } };
  };
}

function render(folder: string): Manifest[] {
  const text = execFileSync('kustomize', ['build', path.join(root, folder)], { encoding: 'utf8' });
  return parseAllDocuments(text).map((document) => document.toJS() as Manifest);
}

/** How many pods of a service there may be at once: autoscaled to its most, and one that replaces another. */
function mostPods(manifests: Manifest[], service: string): number {
  const find = (kind: string) =>
    manifests.find((each) => each.kind === kind && each.metadata.name === service)?.spec;
  const deployment = find('Deployment');
  expect(deployment, `the Deployment of ${service}`).toBeDefined();
  const replicas = find('HorizontalPodAutoscaler')?.maxReplicas ?? deployment?.replicas ?? 1;
  return replicas + (deployment?.strategy?.rollingUpdate?.maxSurge ?? 0);
}

function readPostgres() {
  const { spec } = render('k8s/local').find(({ kind }) => kind === 'StatefulSet')!;
  const [{ args, resources } = expect.fail('no container')] = spec.template.spec.containers;
  return {
    connections: Number(/max_connections=(\d+)/.exec(args.join(' '))?.[1]),
    mebibytes: Number(/^(\d+)Mi$/.exec(resources.limits.memory)?.[1]),
  };
}

test.skipIf(!hasKustomize).each(['dev', 'prod'])(
  'max_connections is enough for all pods of %s',
  (overlay) => {
    const manifests = render(`kustomize/overlays/${overlay}`);
    const pods = readServices().map(({ name }) => mostPods(manifests, name));
    const needed = pods.reduce((sum, count) => sum + count * ofPod, reserve);
    expect(
      readPostgres().connections,
      `max_connections of k8s/local/postgres/postgres.yaml is too small for ${pods.length} services`,
    ).toBeGreaterThanOrEqual(needed);
  },
);

test.skipIf(!hasKustomize)('its memory limit is enough for max_connections', () => {
  const { connections, mebibytes } = readPostgres();
  expect(mebibytes).toBeGreaterThanOrEqual(connections * memory.ofConnection + memory.ofPostgres);
});
