import { describe, expect, test } from 'vitest';
import { kubectl, kubectlWith, until } from '../../cluster.ts';
import { allowed, grants, groups, readRoles, refused, wrong, type Case } from '../../roles.ts';

/** Each rule and each binding taken out in turn: the matrix notices, and nothing else changes. */

interface Binding {
  metadata: { name: string; namespace: string };
  roleRef: { name: string };
  subjects: { name: string }[];
}

const selector = '--selector=app.kubernetes.io/part-of=payloop';
const roles = (await readRoles()).filter(({ metadata }) => metadata.name.startsWith('payloop-'));
const bindings = JSON.parse(
  await kubectl('get', 'rolebindings', '--all-namespaces', selector, '--output=json'),
).items as Binding[];

/** Takes a part out of an object for as long as the matrix is asked. @returns what is wrong with it then */
async function without(
  { kind, metadata }: { kind: string; metadata: { name: string; namespace?: string } },
  path: string,
): Promise<Case[]> {
  const target = [kind, metadata.name, ...(metadata.namespace ? [`--namespace=${metadata.namespace}`] : [])];
  const object = JSON.parse(await kubectl('get', ...target, '--output=json'));
  delete object.metadata.resourceVersion;
  await kubectl('patch', ...target, '--type=json', `--patch=[{"op":"remove","path":"${path}"}]`);
  try {
    // The API server takes a moment to hear of it.
    await until('the matrix notices', 5, async () => (await wrong(allowed)).length > 0);
    return await wrong(allowed);
  } finally {
    await kubectlWith([object], 'replace', '--filename=-');
    await until('all is as before', 5, async () => (await wrong(allowed)).length === 0);
  }
}

describe.each(roles)('$metadata.name', (role) => {
  const uses = bindings.filter(({ roleRef }) => roleRef.name === role.metadata.name);
  const isBound = ({ group, namespace }: Case) =>
    uses.some(
      ({ metadata, subjects }) =>
        metadata.namespace === namespace && subjects.some(({ name }) => name === group),
    );

  test.each(
    role.rules.map((rule, n) => [`${rule.resources?.join()}: ${rule.verbs.join()}`, rule, n] as const),
  )('%s', async (_title, rule, n) => {
    const expected = allowed.filter((each) => isBound(each) && grants(rule, each));
    expect(await without({ ...role, kind: 'clusterrole' }, `/rules/${n}`)).toEqual(expected);
  });

  test.each(
    uses.flatMap((binding) =>
      binding.subjects.map(({ name }, n) => [name, binding.metadata.namespace, binding, n] as const),
    ),
  )('of %s in %s', async (group, namespace, binding, n) => {
    const expected = allowed.filter(
      (each) =>
        each.group === group && each.namespace === namespace && role.rules.some((rule) => grants(rule, each)),
    );
    expect(await without({ ...binding, kind: 'rolebinding' }, `/subjects/${n}`)).toEqual(expected);
  });
});

test.each(groups)('%s, with every right there is: each refusal is noticed', async (group) => {
  const own = refused.filter((each) => each.group === group);
  const name = `matrix-${group}`;
  await kubectl('create', 'clusterrolebinding', name, '--clusterrole=cluster-admin', `--group=${group}`);
  try {
    await until('the matrix notices', 5, async () => (await wrong(own)).length > 0);
    expect(await wrong(own)).toEqual(own);
  } finally {
    await kubectl('delete', 'clusterrolebinding', name);
    await until('all is as before', 5, async () => (await wrong(own)).length === 0);
  }
});
