import { describe, expect, test } from 'vitest';
import { kubectl, kubectlWith, until } from '../../cluster.ts';
import { allowed, findWrongCases, grants, groups, readRoles, refused, type Case } from '../../roles.ts';

// Removes each rule and each subject of a binding in turn: the matrix detects it, and no other right changes. Then
// grants each group everything: the matrix detects each forbidden right.

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

/** Removes a part of an object while the matrix is checked. @returns the cases that then differ from the matrix */
async function without(
  { kind, metadata }: { kind: string; metadata: { name: string; namespace?: string } },
  path: string,
): Promise<Case[]> {
  const target = [kind, metadata.name, ...(metadata.namespace ? [`--namespace=${metadata.namespace}`] : [])];
  const object = JSON.parse(await kubectl('get', ...target, '--output=json'));
  delete object.metadata.resourceVersion;
  await kubectl('patch', ...target, '--type=json', `--patch=[{"op":"remove","path":"${path}"}]`);
  try {
    // The API server takes a moment to apply the change.
    await until('the matrix differs', 5, async () => (await findWrongCases(allowed)).length > 0);
    return await findWrongCases(allowed);
  } finally {
    await kubectlWith([object], 'replace', '--filename=-');
    await until('the rights are restored', 5, async () => (await findWrongCases(allowed)).length === 0);
  }
}

describe.each(roles)('$metadata.name', (role) => {
  const bindingsOfRole = bindings.filter(({ roleRef }) => roleRef.name === role.metadata.name);
  const isBound = ({ group, namespace }: Case) =>
    bindingsOfRole.some(
      ({ metadata, subjects }) =>
        metadata.namespace === namespace && subjects.some(({ name }) => name === group),
    );

  test.each(
    role.rules.map((rule, n) => [`${rule.resources?.join()}: ${rule.verbs.join()}`, rule, n] as const),
  )('without the rule %s, only its rights are missing', async (_title, rule, n) => {
    const expected = allowed.filter((each) => isBound(each) && grants(rule, each));
    expect(await without({ ...role, kind: 'clusterrole' }, `/rules/${n}`)).toEqual(expected);
  });

  test.each(
    bindingsOfRole.flatMap((binding) =>
      binding.subjects.map(({ name }, n) => [name, binding.metadata.namespace, binding, n] as const),
    ),
  )('without the binding of %s in %s, only its rights are missing', async (group, namespace, binding, n) => {
    const expected = allowed.filter(
      (each) =>
        each.group === group && each.namespace === namespace && role.rules.some((rule) => grants(rule, each)),
    );
    expect(await without({ ...binding, kind: 'rolebinding' }, `/subjects/${n}`)).toEqual(expected);
  });
});

test.each(groups)('the matrix detects each forbidden right when %s has all rights', async (group) => {
  const own = refused.filter((each) => each.group === group);
  const name = `matrix-${group}`;
  await kubectl('create', 'clusterrolebinding', name, '--clusterrole=cluster-admin', `--group=${group}`);
  try {
    await until('the matrix differs', 5, async () => (await findWrongCases(own)).length > 0);
    expect(await findWrongCases(own)).toEqual(own);
  } finally {
    await kubectl('delete', 'clusterrolebinding', name);
    await until('the rights are restored', 5, async () => (await findWrongCases(own)).length === 0);
  }
});
