import { describe, expect, test } from 'vitest';
import { kubectl } from './cluster.ts';
import {
  allowed,
  emptyRights,
  expectedRights,
  groups,
  listRights,
  namespaces,
  readRoles,
  refused,
  unknownResources,
  wrong,
} from './roles.ts';

describe.each(groups)('%s', (group) => {
  test('may what it is there for', { timeout: 120_000 }, async () => {
    expect(await wrong(allowed.filter((each) => each.group === group))).toEqual([]);
  });

  test('may nothing of what it must not', { timeout: 120_000 }, async () => {
    expect(await wrong(refused.filter((each) => each.group === group))).toEqual([]);
  });

  test.each(namespaces)('has no right in %s but those of the matrix', async (namespace) => {
    expect(await listRights(group, namespace)).toEqual(expectedRights(group, namespace));
  });
});

test('no role has a wildcard', async () => {
  for (const { rules } of await readRoles()) expect(JSON.stringify(rules)).not.toContain('*');
});

test('no rule of a team or the pipeline grants something that is not there', async () => {
  const roles = (await readRoles()).filter(({ metadata }) => metadata.name.startsWith('payloop-'));
  expect(roles).toHaveLength(3);
  for (const rule of roles.flatMap(({ rules }) => rules)) expect(await emptyRights(rule)).toEqual([]);
});

test('what is refused is there', async () => {
  expect(await unknownResources()).toEqual([]);
});

test('no team and no pipeline has a right in the whole cluster', async () => {
  const { items } = JSON.parse(await kubectl('get', 'clusterrolebindings', '--output=json'));
  const bound = (items as { subjects?: { kind: string; name: string }[] }[])
    .flatMap(({ subjects }) => subjects ?? [])
    .filter(({ kind, name }) => kind === 'Group' && groups.includes(name));
  expect(bound).toEqual([]);
});
