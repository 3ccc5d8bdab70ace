import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { inContainer, kubectl, kubectlWith, overlay, until, url } from './cluster.ts';

/**
 * Who reaches whom: the matrix that the network policies have to come to, and the pods that try. Each has the
 * labels of what it stands for, is never ready, so that no Service sends it anything, and listens on what a policy
 * may be about. A pod with `open` may send to whomever it likes: what stops it then is the other side.
 */

interface Probe {
  namespace: string;
  /** Its app.kubernetes.io/name. */
  name: string;
  open?: boolean;
}

const app = 'app.kubernetes.io/name';
const open = 'payloop/probe-open';
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
const bystander = (namespace: string): Probe => ({ namespace, name: 'bystander' });
const outside: Probe = { namespace: 'elsewhere', name: 'anyone' };
/** Not a pod. */
const thisMachine: Probe = { namespace: 'outside', name: 'this machine' };

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
/** The namespaces of k8s/ and, in the prod-like run, of k8s/prod-local: all of them start from nothing. */
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

function probeId({ namespace, name, open: isOpen }: Probe): string {
  return `${namespace}/${name}${isOpen ? '-open' : ''}`;
}

function podName({ name, open: isOpen }: Probe): string {
  return `probe-${name}${isOpen ? '-open' : ''}`;
}

const execute = promisify(execFile);
const label = 'payloop/probe';
/** What Postgres' image has: bash to connect, perl to listen. */
const image = 'postgres:18';
const port = 8081;
const listen = `use IO::Socket::INET;
  my $server = IO::Socket::INET->new(LocalPort => ${port}, Listen => 50, ReuseAddr => 1) or die;
  while (my $client = $server->accept) { close $client }`;

const worker = {
  weight: 100,
  preference: {
    matchExpressions: [{ key: 'node-role.kubernetes.io/control-plane', operator: 'DoesNotExist' }],
  },
};

function pod(probe: Probe): object {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name: podName(probe),
      namespace: probe.namespace,
      labels: { [app]: probe.name, [label]: 'yes', ...(probe.open && { [open]: 'yes' }) },
    },
    spec: {
      automountServiceAccountToken: false,
      enableServiceLinks: false,
      terminationGracePeriodSeconds: 0,
      // Away from the API server, if there is a node for it.
      affinity: { nodeAffinity: { preferredDuringSchedulingIgnoredDuringExecution: [worker] } },
      securityContext: {
        runAsNonRoot: true,
        runAsUser: 65532,
        seccompProfile: { type: 'RuntimeDefault' },
      },
      containers: [
        {
          name: 'probe',
          image,
          command: ['perl', '-e', listen],
          // Never: a Service would send it requests.
          readinessProbe: { exec: { command: ['false'] }, periodSeconds: 3600 },
          resources: { requests: { cpu: '1m', memory: '8Mi' } },
          securityContext: {
            allowPrivilegeEscalation: false,
            readOnlyRootFilesystem: true,
            capabilities: { drop: ['ALL'] },
          },
        },
      ],
    },
  };
}

/** Lets the open probes of a namespace send to anyone. */
function openPolicy(namespace: string): object {
  return {
    apiVersion: 'networking.k8s.io/v1',
    kind: 'NetworkPolicy',
    metadata: { name: 'probe-open', namespace },
    spec: { podSelector: { matchLabels: { [open]: 'yes' } }, policyTypes: ['Egress'], egress: [{}] },
  };
}

const probes = new Map(
  flows
    .flatMap(({ from }) => [from])
    .concat(closed.map(bystander))
    .filter((probe) => probe !== thisMachine)
    .map((probe) => [probeId(probe), probe]),
);

/** Starts the pods that try, and makes the namespaces that this cluster lacks. */
export async function startProbes(): Promise<void> {
  // Those of a run that was cut short.
  await stopProbes({ wait: true });
  const namespaces = [...new Set([...probes.values()].map(({ namespace }) => namespace))];
  const there = (await kubectl('get', 'namespaces', '--output=name')).split('\n');
  const lacking = namespaces.filter((name) => !there.includes(`namespace/${name}`));
  const labels = { [label]: 'yes' };
  await kubectlWith(
    [
      ...lacking.map((name) => ({ apiVersion: 'v1', kind: 'Namespace', metadata: { name, labels } })),
      ...namespaces.map(openPolicy),
      ...[...probes.values()].map(pod),
    ],
    'apply',
    '--filename=-',
  );
  await until('every probe runs', 90, async () => {
    const found = await readProbes();
    return found.length === probes.size && found.every(({ status }) => status.phase === 'Running');
  });
}

/** Removes them; without waiting for the namespaces to be gone, which takes a while. */
export async function stopProbes({ wait = false } = {}): Promise<void> {
  const selector = `--selector=${label}`;
  await kubectl('delete', 'pods', '--all-namespaces', selector, '--grace-period=0', '--force');
  await kubectl('delete', 'networkpolicies', '--all-namespaces', '--field-selector=metadata.name=probe-open');
  await kubectl('delete', 'namespaces', selector, `--wait=${wait}`);
}

interface ProbePod {
  metadata: { name: string; namespace: string };
  status: { phase: string; podIP?: string };
}

async function readProbes(): Promise<ProbePod[]> {
  const selector = `--selector=${label}`;
  return JSON.parse(await kubectl('get', 'pods', '--all-namespaces', selector, '--output=json')).items;
}

/** Where the targets are, each as `address:port`. */
export async function findTargets(): Promise<Map<string, string>> {
  const service = async (namespace: string, name: string) => {
    const output = '--output=jsonpath={.spec.clusterIP}:{.spec.ports[0].port}';
    return await kubectl('get', 'service', name, `--namespace=${namespace}`, output);
  };
  const metrics = async (name: string) => {
    const selector = `--selector=${app}=${name},!${label}`;
    const output = '--output=jsonpath={.items[0].status.podIP}';
    return `${await kubectl('get', 'pods', `--namespace=${name}`, selector, output)}:9091`;
  };
  const controlPlane = '--selector=node-role.kubernetes.io/control-plane';
  const dns = await service('kube-system', 'kube-dns');
  const targets = new Map([
    ['invoice-app:http', await service('invoice-app', 'invoice-app')],
    ['payment-provider:http', await service('payment-provider', 'payment-provider')],
    ['invoice-app:metrics', await metrics('invoice-app')],
    ['payment-provider:metrics', await metrics('payment-provider')],
    ['postgres', await service('postgres', 'postgres')],
    ['api-server', await service('default', 'kubernetes')],
    ['dns over TCP', dns],
    ['dns', `udp:${dns}`],
    [
      'kubelet',
      `${await kubectl('get', 'nodes', controlPlane, '--output=jsonpath={.items[0].status.addresses[0].address}')}:10250`,
    ],
    ['outside the cluster', await findOutsider()],
    [url, url],
  ]);
  for (const { metadata, status } of await readProbes()) {
    const at = `${status.podIP}:${port}`;
    if (metadata.namespace === 'elsewhere' && metadata.name !== 'probe-anyone') targets.set('elsewhere', at);
    if (metadata.name === 'probe-bystander') targets.set(`bystander in ${metadata.namespace}`, at);
  }
  return targets;
}

/** Something beyond the cluster's nodes that answers, on a machine without a network too: its registry. */
async function findOutsider(): Promise<string> {
  const output = '--output=jsonpath={.data.localRegistryHosting\\.v1}';
  const text = await kubectl('get', 'configmap', 'local-registry-hosting', '--namespace=kube-public', output);
  const [, host = '', itsPort = ''] =
    /hostFromContainerRuntime: "?([^:"\s]+):(\d+)/.exec(text) ??
    /hostFromClusterNetwork: "?([^:"\s]+):(\d+)/.exec(text) ??
    [];
  const { stdout } = await execute('docker', [
    'inspect',
    '--format={{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}',
    host,
  ]);
  // It is in Docker's own network, which pods do not reach, and in kind's.
  const addresses = stdout.trim().split(/\s+/);
  const node = await kubectl('get', 'nodes', '--output=jsonpath={.items[0].status.addresses[0].address}');
  const near = addresses.find((address) => address.split('.')[1] === node.split('.')[1]);
  return `${near ?? addresses[0]}:${itsPort}`;
}

/** Tries each target: `timeout` is what tells a packet that nobody answers. */
const connect = `for target in "$@"; do
  (
    case $target in
      udp:*) timeout 2 getent hosts kubernetes.default.svc.cluster.local >/dev/null ;;
      *) timeout 2 bash -c ": </dev/tcp/\${target%:*}/\${target##*:}" 2>/dev/null ;;
    esac && echo "$target"
  ) &
done
wait`;

/** Lets every probe try its targets. @returns the flows that are not as they should be */
export async function wrongFlows(targets: Map<string, string>, asked = flows): Promise<Flow[]> {
  const byProbe = Map.groupBy(asked, ({ from }) => from);
  const found = await Promise.all(
    [...byProbe].map(async ([from, own]) => {
      const wanted = own.map(({ to }) => targets.get(to) ?? '');
      const reached = await (from === thisMachine ? answersHere() : connectFrom(from, wanted));
      return own.filter(({ reaches }, n) => reached.includes(wanted[n]!) !== reaches);
    }),
  );
  return found.flat();
}

async function connectFrom(probe: Probe, targets: string[]): Promise<string[]> {
  const command = ['bash', '-c', connect, 'bash', ...targets];
  return (await inContainer(probe.namespace, podName(probe), command)).split('\n');
}

/** By curl, as a connection that is kept outlives the policy that let it through. */
async function answersHere(): Promise<string[]> {
  const curl = execute('curl', ['--silent', '--insecure', '--max-time', '3', `${url}/livez`]);
  return curl.then(
    ({ stdout }) => (stdout === 'ok' ? [url] : []),
    () => [],
  );
}
