import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { parse } from 'yaml';
import { readServices } from '../../scripts/services.ts';

/**
 * Who reaches whom: the matrix that the network policies have to come to. Every service has the same rows, and those
 * that its deploy/flows.yaml adds. The pods that try are in probes.ts.
 */

/** A pod that tries, with the labels of what it stands for. */
export interface Probe {
  namespace: string;
  /** Its app.kubernetes.io/name. */
  name: string;
  /** It has the labels that kustomize/service gives to the pods of a service. */
  service?: boolean;
  /** It may send to anyone: only the other side can stop it. */
  open?: boolean;
}

export interface Flow {
  from: Probe;
  /** The name of a target: see `findTargets` of probes.ts. */
  to: string;
  reaches: boolean;
  /** The policies that let it through, each of which it needs; or the one, or the namespace's, that stop it. */
  by: string[];
}

/** What a service says of its own policies, in deploy/flows.yaml. */
interface OwnFlows {
  /** Who gets in at the service's port, as namespace/name. */
  ingress?: Ends;
  /** Targets. */
  egress?: Ends;
}

/** By policy its other end, or several. */
type Ends = Record<string, string | string[]> | null;

const root = path.resolve(import.meta.dirname, '../..');

const controller: Probe = { namespace: 'ingress', name: 'traefik' };
const postgres: Probe = { namespace: 'postgres', name: 'postgres' };
const metricsServer: Probe = { namespace: 'metrics-server', name: 'metrics-server' };
const scraper: Probe = { namespace: 'monitoring', name: 'prometheus' };
const outside: Probe = { namespace: 'elsewhere', name: 'anyone' };
/** Not a pod. */
export const thisMachine: Probe = { namespace: 'outside', name: 'this machine' };
/** The pods of a service. */
const podOf = (name: string): Probe => ({ namespace: name, name, service: true });
/** In the namespace of one that may, under another name and without the labels of a service. */
const beside = ({ namespace }: Probe): Probe => ({ namespace, name: 'other', open: true });
/** With every label of one that may, in a namespace without policies. */
const like = (probe: Probe): Probe => ({ ...probe, namespace: 'elsewhere' });
/** What no policy but the default selects. */
export const bystander = (namespace: string): Probe => ({ namespace, name: 'bystander' });
const opened = (probe: Probe): Probe => ({ ...probe, open: true });

const may = (from: Probe, to: string, ...by: string[]): Flow => ({ from, to, reaches: true, by });
const mayNot = (from: Probe, to: string, by: string): Flow => ({ from, to, reaches: false, by: [by] });

/** The namespaces of k8s/ and, in the prod-like run, of k8s/local/edge: all of them start from nothing. */
export function closedNamespaces(overlay: string, services = serviceNames()): string[] {
  return [...services, 'postgres', ...(overlay === 'prod' ? ['ingress', 'metrics-server'] : [])];
}

/**
 * The whole matrix of an overlay.
 * @param url where this machine finds the front
 * @throws {Error} with the file's name, where a deploy/flows.yaml cannot be used
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
    // Otherwise a refusal below would show nothing.
    may(outside, 'elsewhere'),
    may(outside, 'outside the cluster'),

    mayNot(opened(controller), 'postgres', 'postgres'),
    // The label of the project alone, which this namespace has too, does not make a service's namespace.
    mayNot({ namespace: 'postgres', name: 'service', service: true, open: true }, 'postgres', 'postgres'),
    mayNot(postgres, 'elsewhere', 'postgres/default-deny'),
    mayNot(postgres, 'outside the cluster', 'postgres/default-deny'),
    ...closed.flatMap((namespace) => [
      mayNot(bystander(namespace), 'elsewhere', `${namespace}/default-deny`),
      mayNot(outside, `bystander in ${namespace}`, `${namespace}/default-deny`),
    ]),
    ...(isProd ? edge : []),
  ];
  // In development there is no controller, and its namespace is the test's own: its policies are not there.
  const isThere = (policy: string) => closed.includes(policy.split('/')[0]!);
  return matrix.map(({ from, to, reaches, by }) => ({ from, to, reaches, by: by.filter(isThere) }));
}

function serviceNames(folder = root): string[] {
  return readServices(folder).map(({ name }) => name);
}

/** By the policies of kustomize/service. */
function ofEveryService(name: string): Flow[] {
  const pod = podOf(name);
  return [
    may(pod, 'postgres', `${name}/to-database`, 'postgres/from-services'),
    may(scraper, `${name}:metrics`, `${name}/from-scraper`),
    may(pod, 'dns', `${name}/to-dns`),
    may(pod, 'dns over TCP', `${name}/to-dns`),
    // Otherwise a refusal of an open pod would show nothing.
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

/** Refusals that a policy of the service's own may lift. */
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

/** They share half of what lets a pod through. */
function imposters(from: Probe, to: string): Flow[] {
  const [namespace = ''] = to.split(':');
  return [mayNot(like(from), to, namespace), mayNot(beside(from), to, namespace)];
}

/** The targets that a service may name as its own, besides the ports of the other services. */
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

/** One flow needs the policies of both its ends. */
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
