import { readServices, teamOf } from '../../scripts/services.ts';
import { list, request } from './api.ts';

/** The matrix of access rights that k8s/platform/roles.yaml and k8s/tenant must grant or refuse. */

export interface Case {
  verb: string;
  resource: string;
  /** Empty for cluster-wide requests. */
  namespace: string;
  group: string;
  allowed: boolean;
}

const read = ['get', 'list', 'watch'];
const write = [...read, 'create', 'update', 'patch'];

/** Each entry has verbs and the resources that they apply to. */
type Rights = (readonly [verbs: string[], resources: string[]])[];

const deploy: Rights = [
  [
    write,
    [
      'deployments.apps',
      'services',
      'horizontalpodautoscalers.autoscaling',
      'poddisruptionbudgets.policy',
      'ingresses.networking.k8s.io',
    ],
  ],
];
const debug: Rights = [
  [read, ['pods', 'events', 'resourcequotas', 'limitranges', 'replicasets.apps']],
  [read, ['endpointslices.discovery.k8s.io', 'networkpolicies.networking.k8s.io']],
  [['get'], ['pods/log']],
];
const access: Rights = [[write, ['networkpolicies.networking.k8s.io', 'serviceaccounts']]];

const services = readServices();
/** A team may have several services. */
const byTeam = Map.groupBy(services, (service) => teamOf(service));
/** Rights by group, then by namespace. */
const rights: Record<string, Record<string, Rights>> = {
  ...Object.fromEntries([...byTeam].map(([team, own]) => [team, inEach(own, [...deploy, ...debug])])),
  ci: inEach(services, [...deploy, ...access]),
  // This group is no team of this project and not its pipeline.
  'other-team': {},
};
export const groups = Object.keys(rights);
export const namespaces = [...services.map(({ name }) => name), 'postgres', 'kube-system'];

function inEach(own: readonly { name: string }[], may: Rights): Record<string, Rights> {
  return Object.fromEntries(own.map(({ name }) => [name, may]));
}

/** Rights that no group has in any namespace. */
const forbidden: Rights = [
  // Reading a Secret leaks its value, and only the platform creates Secrets.
  [[...write, 'delete'], ['secrets']],
  // These lead into a running pod or around the network policies.
  [
    ['create', 'get'],
    ['pods/exec', 'pods/attach', 'pods/portforward', 'pods/proxy', 'services/proxy'],
  ],
  [['patch'], ['pods/ephemeralcontainers']],
  // These create a pod without a reviewed Deployment, or use the identity of another service.
  [['create', 'update', 'patch', 'delete'], ['pods']],
  [['create'], ['serviceaccounts/token', 'pods/eviction']],
  [
    ['get', 'create', 'patch'],
    ['roles.rbac.authorization.k8s.io', 'rolebindings.rbac.authorization.k8s.io'],
  ],
  [['impersonate'], ['users', 'groups', 'serviceaccounts']],
  [
    ['delete', 'deletecollection'],
    ['deployments.apps', 'services', 'networkpolicies.networking.k8s.io'],
  ],
  [
    ['update', 'patch'],
    ['resourcequotas', 'limitranges'],
  ],
  [
    ['get', 'create', 'patch'],
    ['statefulsets.apps', 'daemonsets.apps', 'configmaps'],
  ],
  [['*'], ['*']],
];
/** Rights that no group has on cluster-scoped resources or on all namespaces. */
const forbiddenEverywhere: Rights = [
  [[...write, 'delete'], ['namespaces']],
  [['list'], ['nodes', 'secrets', 'pods']],
  [['create'], ['priorityclasses.scheduling.k8s.io', 'clusterrolebindings.rbac.authorization.k8s.io']],
];

function cases(entries: Rights, namespace: string, group: string, isAllowed: boolean): Case[] {
  return entries.flatMap(([verbs, resources]) =>
    resources.flatMap((resource) =>
      verbs.map((verb) => ({ verb, resource, namespace, group, allowed: isAllowed })),
    ),
  );
}

function isGranted({ verb, resource, namespace, group }: Case): boolean {
  return (rights[group]?.[namespace] ?? []).some(
    ([verbs, resources]) => verbs.includes(verb) && resources.includes(resource),
  );
}

export const allowed = groups.flatMap((group) =>
  namespaces.flatMap((namespace) => cases(rights[group]?.[namespace] ?? [], namespace, group, true)),
);

/** The rights that some group has in some namespace, and those that no group has. Refused where not granted. */
const restricted: Rights = [...deploy, ...debug, ...access, ...forbidden];
export const refused = groups.flatMap((group) =>
  namespaces
    .flatMap((namespace) => cases(restricted, namespace, group, false).filter((each) => !isGranted(each)))
    .concat(cases(forbiddenEverywhere, '', group, false)),
);

/** Asks the API server about a user of a group, and returns its answer. The empty group means no group. */
async function review(kind: 'AccessReview' | 'RulesReview', group: string, spec: object): Promise<any> {
  const path = `/apis/authorization.k8s.io/v1/selfsubject${kind.toLowerCase()}s`;
  const body = { apiVersion: 'authorization.k8s.io/v1', kind: `SelfSubject${kind}`, spec };
  return (await request(path, { method: 'POST', body, group })).status;
}

/**
 * Checks rights as `kubectl auth can-i` does.
 * @returns the cases where the cluster differs from the matrix
 */
export async function findWrongCases(matrix: readonly Case[]): Promise<Case[]> {
  const answers = await Promise.all(
    matrix.map(async ({ verb, resource, namespace, group }) => {
      const resourceAttributes = { verb, namespace, ...nameParts(resource) };
      return (await review('AccessReview', group, { resourceAttributes })).allowed;
    }),
  );
  return matrix.filter((each, n) => answers[n] !== each.allowed);
}

/** Splits a name such as `deployments.apps` or `pods/log`. */
function nameParts(name: string): { group: string; resource: string; subresource: string } {
  const [full = '', subresource = ''] = name.split('/');
  const [resource = '', ...group] = full.split('.');
  return { group: group.join('.'), resource, subresource };
}

/** Lists the verbs per resource that the API server allows a group in a namespace, except those of every user. */
export async function listRights(group: string, namespace: string): Promise<Record<string, string[]>> {
  const [common, own] = await Promise.all([readRules('', namespace), readRules(group, namespace)]);
  const ofEveryone = new Set(common.map((rule) => JSON.stringify(rule)));
  const found: Record<string, string[]> = {};
  for (const rule of own.filter((each) => !ofEveryone.has(JSON.stringify(each)))) {
    const resources = (rule.apiGroups ?? []).flatMap((apiGroup) =>
      (rule.resources ?? []).map((resource) => (apiGroup ? `${resource}.${apiGroup}` : resource)),
    );
    for (const name of [...resources, ...(rule.nonResourceURLs ?? [])]) {
      found[name] = [...new Set([...(found[name] ?? []), ...rule.verbs])].toSorted();
    }
  }
  return found;
}

/** Reads the rules that apply to a user of a group, or of no group. */
async function readRules(group: string, namespace: string): Promise<Rule[]> {
  const { resourceRules, nonResourceRules } = await review('RulesReview', group, { namespace });
  return [...resourceRules, ...nonResourceRules];
}

/** Returns the same rights according to the matrix. */
export function expectedRights(group: string, namespace: string): Record<string, string[]> {
  const found: Record<string, string[]> = {};
  for (const [verbs, resources] of rights[group]?.[namespace] ?? []) {
    for (const resource of resources) {
      found[resource] = [...new Set([...(found[resource] ?? []), ...verbs])].toSorted();
    }
  }
  return found;
}

export interface Rule {
  apiGroups?: string[];
  resources?: string[];
  nonResourceURLs?: string[];
  verbs: string[];
}

export interface Role {
  kind: string;
  metadata: { name: string; namespace?: string };
  rules: Rule[];
}

/** Reads the project's own roles from the cluster. */
export async function readRoles(): Promise<Role[]> {
  const found = await Promise.all(
    ['ClusterRole', 'Role'].map(async (kind) => {
      const path = `/apis/rbac.authorization.k8s.io/v1/${kind.toLowerCase()}s`;
      // The objects of a list do not name their kind.
      const roles = await list(path, 'app.kubernetes.io/part-of=payloop');
      return roles.map(({ metadata, rules }): Role => ({ kind, metadata, rules }));
    }),
  );
  return found.flat();
}

/** Returns the parts of a rule that the API server does not know, as `group/resource verb`. */
export async function emptyRights(rule: Rule): Promise<string[]> {
  const found: string[] = [];
  for (const apiGroup of rule.apiGroups ?? []) {
    const known = await readResources(apiGroup);
    for (const resource of rule.resources ?? []) {
      const verbs = known.get(resource) ?? [];
      found.push(
        ...rule.verbs
          .filter((verb) => !verbs.includes(verb))
          .map((verb) => `${apiGroup}/${resource} ${verb}`),
      );
    }
  }
  return found;
}

/** Returns the resources of the matrix that the API server lacks, because refusing them proves nothing. */
export async function unknownResources(): Promise<string[]> {
  const names = new Set([...allowed, ...refused].map(({ resource }) => resource));
  const found: string[] = [];
  for (const name of names) {
    const { group, resource, subresource } = nameParts(name);
    const known = (await readResources(group)).has(subresource ? `${resource}/${subresource}` : resource);
    // Impersonation uses names that are not resources.
    if (!known && !['*', 'users', 'groups'].includes(name)) found.push(name);
  }
  return found;
}

let discovery: Promise<ApiGroup[]> | undefined;

/** The parts of an APIGroupDiscovery that the tests use. */
interface ApiGroup {
  metadata: { name?: string };
  versions: { resources: { resource: string; verbs: string[]; subresources?: Subresource[] }[] }[];
}
interface Subresource {
  subresource: string;
  verbs: string[];
}

/** Returns the resources of an API group with their verbs. */
async function readResources(apiGroup: string): Promise<Map<string, string[]>> {
  const apiGroups = await (discovery ??= discover());
  const found = apiGroups.find(({ metadata: { name = '' } }) => name === apiGroup);
  const resources = (found?.versions ?? []).flatMap((version) => version.resources);
  const verbsOf = new Map(resources.map(({ resource, verbs }) => [resource, verbs]));
  for (const { resource, subresources = [] } of resources) {
    for (const { subresource, verbs } of subresources) verbsOf.set(`${resource}/${subresource}`, verbs);
  }
  return verbsOf;
}

/** Reads all API groups: https://kubernetes.io/docs/concepts/overview/kubernetes-api/#aggregated-discovery */
async function discover(): Promise<ApiGroup[]> {
  const headers = { Accept: 'application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList' };
  const lists = await Promise.all(['/api', '/apis'].map((path) => request(path, { headers })));
  return lists.flatMap(({ items }) => items);
}

/** Returns whether a rule grants a right. */
export function grants(rule: Rule, { verb, resource: name }: Case): boolean {
  const { group, resource, subresource } = nameParts(name);
  return (
    rule.verbs.includes(verb) &&
    (rule.apiGroups ?? []).includes(group) &&
    (rule.resources ?? []).includes(subresource ? `${resource}/${subresource}` : resource)
  );
}
