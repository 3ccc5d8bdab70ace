import { describe, expect, test } from 'vitest';
import { list } from './api.ts';
import {
  allowed,
  emptyRights,
  expectedRights,
  findWrongCases,
  groups,
  listRights,
  namespaces,
  readRoles,
  refused,
  unknownResources,
} from './roles.ts';

describe.each(groups)('%s', (group) => {
  test('has every right of the matrix', async () => {
    expect(await findWrongCases(allowed.filter((each) => each.group === group))).toEqual([]);
  });

  test('has none of the forbidden rights', async () => {
    expect(await findWrongCases(refused.filter((each) => each.group === group))).toEqual([]);
  });

  test.each(namespaces)('has exactly the rights of the matrix in %s', async (namespace) => {
    expect(await listRights(group, namespace)).toEqual(expectedRights(group, namespace));
  });
});

test('no role has a wildcard', async () => {
  for (const { rules } of await readRoles()) expect(JSON.stringify(rules)).not.toContain('*');
});

test('every rule of a team or the pipeline grants only rights that exist', async () => {
  const roles = (await readRoles()).filter(({ metadata }) => metadata.name.startsWith('payloop-'));
  expect(roles).toHaveLength(3);
  for (const rule of roles.flatMap(({ rules }) => rules)) expect(await emptyRights(rule)).toEqual([]);
});

test('every resource of the matrix exists', async () => {
  expect(await unknownResources()).toEqual([]);
});

test('no team or pipeline has a cluster-wide right', async () => {
  const bindings: { subjects?: { kind: string; name: string }[] }[] = await list(
    '/apis/rbac.authorization.k8s.io/v1/clusterrolebindings',
  );
  const bound = bindings
    .flatMap(({ subjects }) => subjects ?? [])
    .filter(({ kind, name }) => kind === 'Group' && groups.includes(name));
  expect(bound).toEqual([]);
});
