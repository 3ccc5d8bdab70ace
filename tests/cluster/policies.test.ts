import { afterAll, beforeAll, expect, test } from 'vitest';
import { list } from './api.ts';
import { kubectlWith, until } from './cluster.ts';
import { describeFlow, type Flow } from './flows.ts';
import { closed, flows } from './policies.ts';
import { findTargets, startProbes, stopProbes, wrongFlows } from './probes.ts';

/** If the cluster does not enforce policies, all other results of this file are meaningless. */
const unenforced =
  'this cluster accepts network policies but does not enforce them: a blocked pod got through, so any pod can reach ' +
  'any service here. Use kind v0.24 or later, or a network plugin that enforces policies.';

let wrong: Flow[] = flows;
let targets: Map<string, string>;
beforeAll(async () => {
  await startProbes();
  targets = await findTargets();
  // Policies take effect a moment after a pod starts.
  await until('every flow matches the matrix', 30, async () => {
    wrong = await wrongFlows(targets);
    return wrong.length === 0;
  }).catch(() => {});
}, 180_000);
afterAll(() => stopProbes(), 120_000);

test('the cluster enforces network policies', { timeout: 120_000 }, async () => {
  const flow = flows.find(({ from, to }) => from.name === 'anyone' && to === 'elsewhere')!;
  expect(await wrongFlows(targets, [flow])).toEqual([]);
  const policy = {
    apiVersion: 'networking.k8s.io/v1',
    kind: 'NetworkPolicy',
    metadata: { name: 'deny', namespace: 'elsewhere' },
    spec: { podSelector: {}, policyTypes: ['Ingress'] },
  };
  await kubectlWith([policy], 'apply', '--filename=-');
  const isBlocked = async () => (await wrongFlows(targets, [flow])).length > 0;
  await until('the policy blocks the flow', 20, isBlocked).catch((cause: unknown) => {
    throw new Error(unenforced, { cause });
  });
});

test.each(flows.map(describeFlow))('%s', (flow) => {
  expect(wrong.map(describeFlow)).not.toContain(flow);
});

test('every namespace blocks traffic by default and has a quota and limits', async () => {
  for (const [path, own] of [
    ['/apis/networking.k8s.io/v1/networkpolicies', 'default-deny'],
    ['/api/v1/resourcequotas', 'quota'],
    ['/api/v1/limitranges', 'limits'],
  ] as const) {
    const found = (await list(path)).map(({ metadata }) => `${metadata.namespace}/${metadata.name}`);
    expect(found).toEqual(expect.arrayContaining(closed.map((name) => `${name}/${own}`)));
  }
});
