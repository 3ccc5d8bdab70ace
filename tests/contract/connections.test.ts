import { execFileSync, spawnSync } from 'node:child_process';
import path from 'node:path';
import { expect, test } from 'vitest';
import { parseAllDocuments } from 'yaml';
import { readServices } from '../../scripts/services.ts';

/** Checks that the local Postgres has the connections and the memory for every pod that an overlay may start. */

const root = path.resolve(import.meta.dirname, '../..');
const hasKustomize = spawnSync('kustomize', ['version']).status === 0;

/** Nine in the pools of a pod and one for readiness: the value of its metric `database_connections_max`. */
const connectionsPerPod = 10;
/** Postgres reserves three for superusers. The others are for people who inspect the database. */
const reserve = 10;
/** In MiB. A connection measured 1.7 after a few statements. Postgres takes 128 of buffers and about 32 more. */
const memory = { perConnection: 2, server: 160 };

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

/** Returns the most pods of a service at one time: its highest replica count plus the surge of a rollout. */
function maxPods(manifests: Manifest[], service: string): number {
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
  'max_connections is enough for all pods of the %s overlay',
  (overlay) => {
    const manifests = render(`kustomize/overlays/${overlay}`);
    const pods = readServices().map(({ name }) => maxPods(manifests, name));
    const needed = pods.reduce((sum, count) => sum + count * connectionsPerPod, reserve);
    expect(
      readPostgres().connections,
      `max_connections of k8s/local/postgres/postgres.yaml is too small for ${pods.length} services`,
    ).toBeGreaterThanOrEqual(needed);
  },
);

test.skipIf(!hasKustomize)('the memory limit of Postgres is enough for max_connections', () => {
  const { connections, mebibytes } = readPostgres();
  expect(mebibytes).toBeGreaterThanOrEqual(connections * memory.perConnection + memory.server);
});
