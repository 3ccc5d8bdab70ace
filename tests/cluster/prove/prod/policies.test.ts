import { setTimeout } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { kubectl, kubectlWith, pods, services, until } from '../../cluster.ts';
import { describeFlow, type Flow } from '../../flows.ts';
import { closed, flows, nodes, notShown } from '../../policies.ts';
import { findTargets, startProbes, stopProbes, wrongFlows } from '../../probes.ts';

/** Removes each policy in turn. Only the flows that it allowed are blocked, and only those it blocked get through. */

interface Policy {
  metadata: { name: string; namespace: string; resourceVersion?: string };
}

const list: Policy[] = JSON.parse(
  await kubectl('get', 'networkpolicies', '--all-namespaces', '--output=json'),
).items;
const policies = list.filter(
  ({ metadata }) => closed.includes(metadata.namespace) && metadata.name !== 'probe-open',
);

/** No pod can take the place of the API server, so its way to metrics-server has a separate test below. */
const notTried = new Set(['metrics-server/from-api-server', ...notShown]);

let targets: Map<string, string>;
beforeAll(async () => {
  // A target must not be a pod that the autoscaler is about to remove after the load of another test.
  await until('each service has three pods', 400, async () => {
    const counts = await Promise.all(services.map(async (service) => (await pods(service)).length));
    return counts.every((count) => count === 3);
  });
  await startProbes();
  targets = await findTargets();
  await until('every flow matches the matrix', 60, async () => (await wrongFlows(targets)).length === 0);
}, 640_000);
afterAll(() => stopProbes(), 120_000);

/** @returns the flows that differ from the matrix while these policies are removed */
async function without(removed: Policy[], expected: Flow[]): Promise<string[]> {
  for (const { metadata } of removed) {
    await kubectl('delete', 'networkpolicy', metadata.name, `--namespace=${metadata.namespace}`);
  }
  try {
    await until('the expected flows change', 20, async () => {
      const wrong = await wrongFlows(targets, expected);
      return wrong.length === expected.length;
    }).catch(() => {});
    return (await wrongFlows(targets)).map(describeFlow).toSorted();
  } finally {
    for (const { metadata } of removed) delete metadata.resourceVersion;
    await kubectlWith(removed, 'create', '--filename=-');
    await until('the flows are restored', 20, async () => (await wrongFlows(targets, expected)).length === 0);
  }
}

describe('when policies are removed', () => {
  test.each(
    policies
      .map((policy) => [`${policy.metadata.namespace}/${policy.metadata.name}`, policy] as const)
      .filter(([name]) => !notTried.has(name)),
  )('exactly the flows of %s change', { timeout: 120_000 }, async (name, policy) => {
    const expected = flows.filter(({ by }) => by.includes(name));
    expect(expected).not.toEqual([]);
    expect(await without([policy], expected)).toEqual(expected.map(describeFlow).toSorted());
  });

  test.each(closed)(
    'exactly the flows blocked in %s get through',
    { timeout: 120_000 },
    async (namespace) => {
      const removed = policies.filter(({ metadata }) => metadata.namespace === namespace);
      const expected = flows.filter(({ reaches, by }) => !reaches && by[0]?.split('/')[0] === namespace);
      expect(await without(removed, expected)).toEqual(expected.map(describeFlow).toSorted());
    },
  );
});

test.runIf(nodes > 1)(
  'metrics are missing without the policy that lets the API server reach metrics-server',
  { timeout: 240_000 },
  async () => {
    const hasMetrics = () =>
      kubectl('get', '--raw', '/apis/metrics.k8s.io/v1beta1/nodes').then(
        () => true,
        () => false,
      );
    const name = 'metrics-server';
    const restart = async () => {
      await kubectl('rollout', 'restart', `deployment/${name}`, `--namespace=${name}`);
      await kubectl('rollout', 'status', `deployment/${name}`, `--namespace=${name}`, '--timeout=90s');
    };
    const [controlPlane = ''] = (
      await kubectl('get', 'nodes', '--selector=node-role.kubernetes.io/control-plane', '--output=name')
    ).split('\n');
    const policy = policies.find(({ metadata }) => metadata.name === 'from-api-server')!;
    const patience = { timeout: 60_000, interval: 1_000 };
    // A node always reaches its own pods, so metrics-server has to run on another node than the API server.
    await kubectl('cordon', controlPlane);
    try {
      await restart();
      await expect.poll(hasMetrics, patience).toBe(true);
      await kubectl('delete', 'networkpolicy', policy.metadata.name, `--namespace=${name}`);
      // A connection outlives the policy that allowed it, so the restart closes it.
      await restart();
      await expect.poll(hasMetrics, patience).toBe(false);
      // The metrics must stay missing after the restart.
      await setTimeout(10_000);
      expect(await hasMetrics()).toBe(false);
    } finally {
      await kubectl('uncordon', controlPlane);
      delete policy.metadata.resourceVersion;
      await kubectlWith(policy, 'apply', '--filename=-');
    }
    await expect.poll(hasMetrics, patience).toBe(true);
  },
);
