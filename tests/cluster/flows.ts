import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { parse } from 'yaml';
import { readServices } from '../../scripts/services.ts';

/**
 * The matrix of flows that the network policies must allow or block. Every service has the same rows, plus those of its
 * deploy/flows.yaml. The pods that try the flows are in probes.ts.
 */

/** A pod that tries flows, with the labels of the pod that it stands for. */
export interface Probe {
  namespace: string;
  /** The label app.kubernetes.io/name. */
  name: string;
  /** Whether it has the labels that kustomize/service sets on the pods of a service. */
  service?: boolean;
  /** Whether it may send to any target, so that only the receiving side can block it. */
  open?: boolean;
}

export interface Flow {
  from: Probe;
  /** The name of a target: see `findTargets` in probes.ts. */
  to: string;
  reaches: boolean;
  /** All policies needed to allow it; or the policy that blocks it, or the namespace with the policies that do. */
  by: string[];
}

/** The flows of a service's own policies, from deploy/flows.yaml. */
interface OwnFlows {
  /** The senders allowed at the service's port, as namespace/name. */
  ingress?: Ends;
  /** The targets that the service may reach. */
  egress?: Ends;
}

/** The other end, or ends, of each policy. */
type Ends = Record<string, string | string[]> | null;

const root = path.resolve(import.meta.dirname, '../..');

const controller: Probe = { namespace: 'ingress', name: 'traefik' };
const postgres: Probe = { namespace: 'postgres', name: 'postgres' };
const metricsServer: Probe = { namespace: 'metrics-server', name: 'metrics-server' };
const scraper: Probe = { namespace: 'monitoring', name: 'prometheus' };
const outside: Probe = { namespace: 'elsewhere', name: 'anyone' };
/** The machine that runs the tests, not a pod. */
export const thisMachine: Probe = { namespace: 'outside', name: 'this machine' };
/** Stands for the pods of a service. */
const podOf = (name: string): Probe => ({ namespace: name, name, service: true });
/** A pod in the namespace of an allowed one, with another name and without the labels of a service. */
const beside = ({ namespace }: Probe): Probe => ({ namespace, name: 'other', open: true });
/** A pod with all labels of an allowed one, in a namespace without policies. */
const like = (probe: Probe): Probe => ({ ...probe, namespace: 'elsewhere' });
/** A pod that only the default policy selects. */
export const bystander = (namespace: string): Probe => ({ namespace, name: 'bystander' });
const opened = (probe: Probe): Probe => ({ ...probe, open: true });

const may = (from: Probe, to: string, ...by: string[]): Flow => ({ from, to, reaches: true, by });
const mayNot = (from: Probe, to: string, by: string): Flow => ({ from, to, reaches: false, by: [by] });

/** Returns the namespaces of k8s/ and, in the prod-like run, of k8s/local/edge. All block traffic by default. */
export function closedNamespaces(overlay: string, services = serviceNames()): string[] {
  return [...services, 'postgres', ...(overlay === 'prod' ? ['ingress', 'metrics-server'] : [])];
}

/**
 * Returns the whole matrix of an overlay.
 * @param url the address of invoice-app from this machine
 * @throws {Error} with the name of the file if a deploy/flows.yaml is invalid
 */
export function readFlows(overlay: string, url: string, folder = root): Flow[] {
  const isProd = overlay === 'prod';
  const services = serviceNames(folder);
  const closed = closedNamespaces(overlay, services);
  const own = merge([
    ...services.flatMap((service) => ownFlows(service, services, folder)),
    may(controller, 'invoice-app:http', 'ingress/to-invoice-app'),
  ]);
  const matrix = [
    may(thisMachine, url, isProd ? 'ingress/from-outside' : 'invoice-app/from-outside'),
    ...own.map(({ from, to, by }) => may(from, to, ...by)),
    ...own.filter(({ to }) => to.endsWith(':http')).flatMap(({ from, to }) => imposters(from, to)),
    ...services.flatMap(ofEveryService),
    ...services.flatMap((service) => strangers(service, services, own)),
    // These targets are reachable, so the blocks below come from the policies.
    may(outside, 'elsewhere'),
    may(outside, 'outside the cluster'),

    mayNot(opened(controller), 'postgres', 'postgres'),
    // This namespace has the label of the project too, but that alone does not make it a service's namespace.
    mayNot({ namespace: 'postgres', name: 'service', service: true, open: true }, 'postgres', 'postgres'),
    mayNot(postgres, 'elsewhere', 'postgres/default-deny'),
    mayNot(postgres, 'outside the cluster', 'postgres/default-deny'),
    ...closed.flatMap((namespace) => [
      mayNot(bystander(namespace), 'elsewhere', `${namespace}/default-deny`),
      mayNot(outside, `bystander in ${namespace}`, `${namespace}/default-deny`),
    ]),
    ...(isProd ? edge : []),
  ];
  // Development lacks the policies of ingress and metrics-server: the tests create these namespaces.
  const isDeployed = (policy: string) => closed.includes(policy.split('/')[0]!);
  return matrix.map(({ from, to, reaches, by }) => ({ from, to, reaches, by: by.filter(isDeployed) }));
}

function serviceNames(folder = root): string[] {
  return readServices(folder).map(({ name }) => name);
}

/** Returns the flows that the policies of kustomize/service allow or block. */
function ofEveryService(name: string): Flow[] {
  const pod = podOf(name);
  return [
    may(pod, 'postgres', `${name}/to-database`, 'postgres/from-services'),
    may(scraper, `${name}:metrics`, `${name}/from-scraper`),
    may(pod, 'dns', `${name}/to-dns`),
    may(pod, 'dns over TCP', `${name}/to-dns`),
    // Open pods can send, so only the receiving side blocks them below.
    may(opened(pod), 'elsewhere'),
    may(beside(pod), 'elsewhere'),

    mayNot(like(pod), 'postgres', 'postgres'),
    mayNot(beside(pod), 'postgres', 'postgres'),
    mayNot(like(scraper), `${name}:metrics`, name),
    mayNot(beside(scraper), `${name}:metrics`, name),
    mayNot(opened(controller), `${name}:metrics`, name),
    mayNot(scraper, `${name}:http`, name),
    mayNot(outside, `${name}:http`, name),
    mayNot(beside(pod), `${name}:http`, name),
    mayNot(pod, 'elsewhere', name),
  ];
}

/** Returns the blocked flows that the service's own policies do not allow. */
function strangers(name: string, services: string[], own: Flow[]): Flow[] {
  const pod = podOf(name);
  const others = services.filter((each) => each !== name).map(podOf);
  return [
    ...[controller, ...others].map((each) => mayNot(opened(each), `${name}:http`, name)),
    ...others.map((each) => mayNot(opened(each), `${name}:metrics`, name)),
    ...['api-server', 'kubelet', 'outside the cluster'].map((target) => mayNot(pod, target, name)),
  ].filter(({ from, to }) => !own.some((flow) => flow.to === to && isSame(flow.from, from)));
}

const isSame = (a: Probe, b: Probe) => a.namespace === b.namespace && a.name === b.name;

/** Returns blocked flows from pods that have only the labels or only the namespace of an allowed one. */
function imposters(from: Probe, to: string): Flow[] {
  const [namespace = ''] = to.split(':');
  return [mayNot(like(from), to, namespace), mayNot(beside(from), to, namespace)];
}

/** The targets that a service may list in its flows.yaml, besides the ports of the other services. */
const targets = ['api-server', 'kubelet', 'outside the cluster'];

function ownFlows(service: string, services: string[], folder: string): Flow[] {
  const file = `services/${service}/deploy/flows.yaml`;
  if (!existsSync(path.join(folder, file))) return [];
  const { ingress, egress }: OwnFlows = parse(readFileSync(path.join(folder, file), 'utf8')) ?? {};
  const each = (policies: Ends = {}) =>
    Object.entries(policies ?? {}).flatMap(([policy, ends]) =>
      [ends].flat().map((end) => [policy, end] as const),
    );
  return [
    ...each(ingress).map(([policy, end]) => {
      const [namespace = '', name] = end.split('/');
      if (!name) throw new Error(`${file}: ingress.${policy} must be NAMESPACE/NAME, not ${end}`);
      const isService = services.includes(name) && name === namespace;
      const from = isService ? podOf(name) : { namespace, name };
      return may(from, `${service}:http`, `${service}/${policy}`);
    }),
    ...each(egress).map(([policy, end]) => {
      const known = [...services.map((name) => `${name}:http`), ...targets];
      if (!known.includes(end))
        throw new Error(`${file}: egress.${policy} must be one of ${known.join(', ')}, not ${end}`);
      return may(podOf(service), end, `${service}/${policy}`);
    }),
  ];
}

/** Merges the entries of each flow, because a flow needs the policies of both its ends. */
function merge(flows: Flow[]): Flow[] {
  const byFlow = Map.groupBy(flows, ({ from, to }) => `${probeId(from)} ${to}`);
  return [...byFlow.values()].map((same) => may(same[0]!.from, same[0]!.to, ...same.flatMap(({ by }) => by)));
}

const edge: Flow[] = [
  may(controller, 'api-server', 'ingress/to-api-server'),
  may(metricsServer, 'api-server', 'metrics-server/to-nodes'),
  may(metricsServer, 'kubelet', 'metrics-server/to-nodes'),
  mayNot(controller, 'kubelet', 'ingress'),
  mayNot(controller, 'elsewhere', 'ingress'),
  mayNot(controller, 'outside the cluster', 'ingress'),
  mayNot(metricsServer, 'elsewhere', 'metrics-server'),
  mayNot(metricsServer, 'outside the cluster', 'metrics-server'),
];

export function describeFlow({ from, to, reaches }: Flow): string {
  return `${probeId(from)} ${reaches ? 'reaches' : 'does not reach'} ${to}`;
}

export function probeId({ namespace, name, open: isOpen }: Probe): string {
  return `${namespace}/${name}${isOpen ? '-open' : ''}`;
}
