import { kubectl, overlay, url } from './cluster.ts';

/** Who reaches whom: the matrix that the network policies have to come to. The pods that try are in probes.ts. */

/** A pod that tries, with the labels of what it stands for. */
export interface Probe {
  namespace: string;
  /** Its app.kubernetes.io/name. */
  name: string;
  /** It may send to whomever it likes: what stops it is the other side. */
  open?: boolean;
}

const controller = { namespace: 'ingress', name: 'traefik' };
const invoiceApp = { namespace: 'invoice-app', name: 'invoice-app' };
const provider = { namespace: 'payment-provider', name: 'payment-provider' };
const postgres = { namespace: 'postgres', name: 'postgres' };
const metricsServer = { namespace: 'metrics-server', name: 'metrics-server' };
const scraper = { namespace: 'monitoring', name: 'prometheus' };
/** In the namespace of one that may, under another name. */
const beside = ({ namespace }: Probe): Probe => ({ namespace, name: 'other', open: true });
/** With the name of one that may, in a namespace without policies. */
const like = ({ name }: Probe): Probe => ({ namespace: 'elsewhere', name });
/** What no policy but the default selects. */
export const bystander = (namespace: string): Probe => ({ namespace, name: 'bystander' });
const outside: Probe = { namespace: 'elsewhere', name: 'anyone' };
/** Not a pod. */
export const thisMachine: Probe = { namespace: 'outside', name: 'this machine' };

export interface Flow {
  from: Probe;
  /** A target by name, or a probe and a port. */
  to: string;
  reaches: boolean;
  /** The policies that let it through, each of which it needs; or the one, or the namespace's, that stop it. */
  by: string[];
}

const may = (from: Probe, to: string, ...by: string[]): Flow => ({ from, to, reaches: true, by });
const mayNot = (from: Probe, to: string, by: string): Flow => ({ from, to, reaches: false, by: [by] });

const isProd = overlay === 'prod';
/** The namespaces of k8s/ and, in the prod-like run, of k8s/local/edge: all of them start from nothing. */
export const closed = [
  'invoice-app',
  'payment-provider',
  'postgres',
  ...(isProd ? ['ingress', 'metrics-server'] : []),
];

/** Nodes let their own pods through: what this is about shows only where the pod is on another. */
const ofNodes = new Set(['api-server', 'kubelet']);
export const nodes = (await kubectl('get', 'nodes', '--output=name')).trim().split('\n').length;

const matrix: Flow[] = [
  may(thisMachine, url, isProd ? 'ingress/from-outside' : 'invoice-app/from-outside'),
  may(
    controller,
    'invoice-app:http',
    // In development there is no controller, and its namespace is the test's own.
    'invoice-app/from-ingress-controller',
    ...(isProd ? ['ingress/to-invoice-app'] : []),
  ),
  may(
    invoiceApp,
    'payment-provider:http',
    'invoice-app/to-payment-provider',
    'payment-provider/from-invoice-app',
  ),
  may(invoiceApp, 'postgres', 'invoice-app/to-database', 'postgres/from-services'),
  may(provider, 'postgres', 'payment-provider/to-database', 'postgres/from-services'),
  may(scraper, 'invoice-app:metrics', 'invoice-app/from-scraper'),
  may(scraper, 'payment-provider:metrics', 'payment-provider/from-scraper'),
  may(invoiceApp, 'dns', 'invoice-app/to-dns'),
  may(invoiceApp, 'dns over TCP', 'invoice-app/to-dns'),
  may(provider, 'dns', 'payment-provider/to-dns'),
  may(provider, 'dns over TCP', 'payment-provider/to-dns'),
  may(provider, 'api-server', 'payment-provider/to-api-server'),
  // Else a refusal below would show nothing.
  may(outside, 'elsewhere'),
  may(outside, 'outside the cluster'),
  may({ ...invoiceApp, open: true }, 'elsewhere'),
  may(beside(invoiceApp), 'elsewhere'),

  mayNot(like(controller), 'invoice-app:http', 'invoice-app'),
  mayNot(beside(controller), 'invoice-app:http', 'invoice-app'),
  mayNot(beside(invoiceApp), 'invoice-app:http', 'invoice-app'),
  mayNot({ ...provider, open: true }, 'invoice-app:http', 'invoice-app'),
  mayNot(scraper, 'invoice-app:http', 'invoice-app'),

  mayNot(like(invoiceApp), 'payment-provider:http', 'payment-provider'),
  mayNot(beside(invoiceApp), 'payment-provider:http', 'payment-provider'),
  mayNot({ ...controller, open: true }, 'payment-provider:http', 'payment-provider'),
  mayNot(beside(provider), 'payment-provider:http', 'payment-provider'),
  mayNot(scraper, 'payment-provider:http', 'payment-provider'),
  mayNot(outside, 'payment-provider:http', 'payment-provider'),

  mayNot(like(invoiceApp), 'postgres', 'postgres'),
  mayNot(like(provider), 'postgres', 'postgres'),
  mayNot(beside(invoiceApp), 'postgres', 'postgres'),
  mayNot({ ...controller, open: true }, 'postgres', 'postgres'),

  mayNot(like(scraper), 'invoice-app:metrics', 'invoice-app'),
  mayNot(beside(scraper), 'invoice-app:metrics', 'invoice-app'),
  mayNot({ ...controller, open: true }, 'invoice-app:metrics', 'invoice-app'),
  mayNot(like(scraper), 'payment-provider:metrics', 'payment-provider'),
  mayNot(beside(scraper), 'payment-provider:metrics', 'payment-provider'),
  mayNot({ ...invoiceApp, open: true }, 'payment-provider:metrics', 'payment-provider'),

  mayNot(invoiceApp, 'elsewhere', 'invoice-app'),
  mayNot(invoiceApp, 'outside the cluster', 'invoice-app'),
  mayNot(provider, 'elsewhere', 'payment-provider'),
  mayNot(provider, 'outside the cluster', 'payment-provider'),
  mayNot(postgres, 'elsewhere', 'postgres/default-deny'),
  mayNot(postgres, 'outside the cluster', 'postgres/default-deny'),
  mayNot(invoiceApp, 'api-server', 'invoice-app'),
  mayNot(provider, 'kubelet', 'payment-provider'),
  ...closed.flatMap((namespace) => [
    mayNot(bystander(namespace), 'elsewhere', `${namespace}/default-deny`),
    mayNot(outside, `bystander in ${namespace}`, `${namespace}/default-deny`),
  ]),
];
const prodMatrix: Flow[] = [
  may(controller, 'api-server', 'ingress/to-api-server'),
  may(metricsServer, 'api-server', 'metrics-server/to-nodes'),
  may(metricsServer, 'kubelet', 'metrics-server/to-nodes'),
  mayNot(controller, 'kubelet', 'ingress'),
  mayNot(controller, 'elsewhere', 'ingress'),
  mayNot(controller, 'outside the cluster', 'ingress'),
  mayNot(metricsServer, 'elsewhere', 'metrics-server'),
  mayNot(metricsServer, 'outside the cluster', 'metrics-server'),
];

export const flows = [...matrix, ...(isProd ? prodMatrix : [])].filter(
  ({ to }) => nodes > 1 || !ofNodes.has(to),
);

export function describeFlow({ from, to, reaches }: Flow): string {
  return `${probeId(from)} ${reaches ? 'reaches' : 'does not reach'} ${to}`;
}

export function probeId({ namespace, name, open: isOpen }: Probe): string {
  return `${namespace}/${name}${isOpen ? '-open' : ''}`;
}
