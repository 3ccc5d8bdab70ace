import { readServices, teamOf } from '../../scripts/services.ts';
import { kubectl, kubectlWith } from './cluster.ts';

/** Who may do what, where: the matrix that k8s/platform/roles.yaml and k8s/tenant have to come to. */

export interface Case {
  verb: string;
  resource: string;
  /** Empty for what is in no namespace. */
  namespace: string;
  group: string;
  allowed: boolean;
}

const read = ['get', 'list', 'watch'];
const write = [...read, 'create', 'update', 'patch'];

/** Each entry: verbs, and the resources they are for. */
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
/** By group, then by namespace. */
const rights: Record<string, Record<string, Rights>> = {
  ...Object.fromEntries([...byTeam].map(([team, own]) => [team, inEach(own, [...deploy, ...debug])])),
  ci: inEach(services, [...deploy, ...access]),
  // Neither a team of this project nor its pipeline.
  'other-team': {},
};
export const groups = Object.keys(rights);
export const namespaces = [...services.map(({ name }) => name), 'postgres', 'kube-system'];

function inEach(own: readonly { name: string }[], may: Rights): Record<string, Rights> {
  return Object.fromEntries(own.map(({ name }) => [name, may]));
}

/** What nobody may, nowhere. */
const forbidden: Rights = [
  // A value that is read is out, whoever may change it; and it is the platform's to make.
  [[...write, 'delete'], ['secrets']],
  // A way into a running pod, or around the network policies.
  [
    ['create', 'get'],
    ['pods/exec', 'pods/attach', 'pods/portforward', 'pods/proxy', 'services/proxy'],
  ],
  [['patch'], ['pods/ephemeralcontainers']],
  // A pod without the review of its Deployment, and the identity of another.
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
/** What is in no namespace. */
const forbiddenEverywhere: Rights = [
  [[...write, 'delete'], ['namespaces']],
  [['list'], ['nodes', 'secrets', 'pods']],
  [['create'], ['priorityclasses.scheduling.k8s.io', 'clusterrolebindings.rbac.authorization.k8s.io']],
];

function cases(asked: Rights, namespace: string, group: string, isAllowed: boolean): Case[] {
  return asked.flatMap(([verbs, resources]) =>
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

/** What a team may in its own namespace, asked in every other, and what nobody may. */
const asked: Rights = [...deploy, ...debug, ...access, ...forbidden];
export const refused = groups.flatMap((group) =>
  namespaces
    .flatMap((namespace) => cases(asked, namespace, group, false).filter((each) => !isGranted(each)))
    .concat(cases(forbiddenEverywhere, '', group, false)),
);

function impersonating(group: string): string[] {
  return ['--as=somebody', `--as-group=${group}`];
}

/**
 * Asks what `kubectl auth can-i` asks, with many questions in one process: one each would take minutes.
 * @returns the cases whose answer is another than the matrix has
 */
export async function wrong(matrix: readonly Case[]): Promise<Case[]> {
  const answers = await Promise.all(groups.map((group) => ask(matrix, group)));
  return answers.flat();
}

async function ask(matrix: readonly Case[], group: string): Promise<Case[]> {
  const own = matrix.filter((each) => each.group === group);
  if (own.length === 0) return [];
  const reviews = own.map(({ verb, resource, namespace }) => ({
    apiVersion: 'authorization.k8s.io/v1',
    kind: 'SelfSubjectAccessReview',
    spec: { resourceAttributes: { verb, namespace, ...nameParts(resource) } },
  }));
  const output = '--output=jsonpath={.status.allowed}{"\\n"}';
  const text = await kubectlWith(reviews, 'create', '--filename=-', output, ...impersonating(group));
  const answers = text.split('\n');
  return own.filter((each, n) => answers[n] !== String(each.allowed));
}

/** Of a name such as `deployments.apps` or `pods/log`. */
function nameParts(name: string): { group: string; resource: string; subresource: string } {
  const [full = '', subresource = ''] = name.split('/');
  const [resource = '', ...group] = full.split('.');
  return { group: group.join('.'), resource, subresource };
}

/** All that the API server says a group may in a namespace, beyond what any user may: resource to verbs. */
export async function listRights(group: string, namespace: string): Promise<Record<string, string[]>> {
  const list = async (as: string[]) => {
    const text = await kubectl('auth', 'can-i', '--list', '--no-headers', `--namespace=${namespace}`, ...as);
    return text.split('\n').filter(Boolean);
  };
  const everybodys = new Set(await list(['--as=somebody']));
  const own = (await list(impersonating(group))).filter((line) => !everybodys.has(line));
  return Object.fromEntries(
    own.map((line) => {
      const verbs = /\[([^\]]*)\]$/.exec(line)?.[1]?.split(' ') ?? [];
      return [line.split(/\s/)[0], verbs.toSorted()];
    }),
  );
}

/** The same, by the matrix. */
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
  verbs: string[];
}

export interface Role {
  kind: string;
  metadata: { name: string; namespace?: string };
  rules: Rule[];
}

/** The project's own roles, as the cluster has them. */
export async function readRoles(): Promise<Role[]> {
  const selector = '--selector=app.kubernetes.io/part-of=payloop';
  const text = await kubectl('get', 'clusterroles,roles', '--all-namespaces', selector, '--output=json');
  return JSON.parse(text).items;
}

/** What of a rule the API server has nothing for: `group/resource verb`. */
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

/** The resources of the matrix that the API server does not have: whoever asks for one is refused. */
export async function unknownResources(): Promise<string[]> {
  const names = new Set([...allowed, ...refused].map(({ resource }) => resource));
  const found: string[] = [];
  for (const name of names) {
    const { group, resource, subresource } = nameParts(name);
    const known = (await readResources(group)).has(subresource ? `${resource}/${subresource}` : resource);
    // Impersonation is of names that are no resources.
    if (!known && !['*', 'users', 'groups'].includes(name)) found.push(name);
  }
  return found;
}

const resourcesOfGroup = new Map<string, Promise<Map<string, string[]>>>();

/** The resources of a group, each with the verbs that it has. */
function readResources(apiGroup: string): Promise<Map<string, string[]>> {
  const found = resourcesOfGroup.get(apiGroup) ?? askForResources(apiGroup);
  resourcesOfGroup.set(apiGroup, found);
  return found;
}

async function askForResources(apiGroup: string): Promise<Map<string, string[]>> {
  const apiGroups = JSON.parse(await kubectl('get', '--raw=/apis')).groups as {
    name: string;
    versions: { groupVersion: string }[];
  }[];
  const paths = apiGroup
    ? (apiGroups.find(({ name }) => name === apiGroup)?.versions ?? []).map(
        ({ groupVersion }) => `/apis/${groupVersion}`,
      )
    : ['/api/v1'];
  const lists = await Promise.all(paths.map((path) => kubectl('get', `--raw=${path}`)));
  return new Map(
    lists.flatMap((text) =>
      (JSON.parse(text).resources as { name: string; verbs: string[] }[]).map(({ name, verbs }) => [
        name,
        verbs,
      ]),
    ),
  );
}

/** Whether a rule is the one that gives a right. */
export function grants(rule: Rule, { verb, resource: name }: Case): boolean {
  const { group, resource, subresource } = nameParts(name);
  return (
    rule.verbs.includes(verb) &&
    (rule.apiGroups ?? []).includes(group) &&
    (rule.resources ?? []).includes(subresource ? `${resource}/${subresource}` : resource)
  );
}
