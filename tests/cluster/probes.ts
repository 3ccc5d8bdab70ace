import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { exec, list } from './api.ts';
import { kubectl, kubectlWith, readRegistry, readyPod, services, url } from './cluster.ts';
import { bystander, probeId, thisMachine, type Flow, type Probe } from './flows.ts';
import { closed, flows } from './policies.ts';

/**
 * The pods that try the flows of flows.ts. They are never ready, so that no Service sends them requests. They listen on
 * a port so that they can be targets too.
 */

const app = 'app.kubernetes.io/name';
/** The labels by which policies of other namespaces select the pods of a service. */
const ofService = { 'app.kubernetes.io/component': 'service', 'app.kubernetes.io/part-of': 'payloop' };
const open = 'payloop/probe-open';
const label = 'payloop/probe';

function podName({ name, open: isOpen }: Probe): string {
  return `probe-${name}${isOpen ? '-open' : ''}`;
}

const execute = promisify(execFile);
/** The Postgres image has bash to connect and perl to listen. */
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

function podFor(probe: Probe): object {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name: podName(probe),
      namespace: probe.namespace,
      labels: {
        [app]: probe.name,
        [label]: 'yes',
        ...(probe.service && ofService),
        ...(probe.open && { [open]: 'yes' }),
      },
    },
    spec: {
      automountServiceAccountToken: false,
      enableServiceLinks: false,
      terminationGracePeriodSeconds: 0,
      // Prefers a node without the API server.
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
          // Always fails; otherwise a Service would send the probe requests.
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

/** Returns the policy that lets the open probes of a namespace send to any target. */
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
    .map(({ from }) => from)
    .concat(closed.map(bystander))
    .filter((probe) => probe !== thisMachine)
    .map((probe) => [probeId(probe), probe]),
);

/** Starts the probes, and creates the namespaces that this cluster lacks. */
export async function startProbes(): Promise<void> {
  // An interrupted run may have left some.
  const left = await Promise.all(['pods', 'namespaces'].map((kind) => list(`/api/v1/${kind}`, label)));
  if (left.flat().length > 0) await stopProbes({ wait: true });
  const namespaces = [...new Set([...probes.values()].map(({ namespace }) => namespace))];
  const existing = new Set((await list('/api/v1/namespaces')).map(({ metadata }) => metadata.name));
  const missing = namespaces.filter((name) => !existing.has(name));
  const labels = { [label]: 'yes' };
  await kubectlWith(
    [
      ...missing.map((name) => ({ apiVersion: 'v1', kind: 'Namespace', metadata: { name, labels } })),
      ...namespaces.map(openPolicy),
      ...[...probes.values()].map(podFor),
    ],
    'apply',
    '--filename=-',
  );
  await kubectl(
    'wait',
    'pods',
    '--all-namespaces',
    `--selector=${label}`,
    '--for=jsonpath={.status.phase}=Running',
    '--timeout=90s',
  );
}

/** Removes the probes. By default it does not wait until they are gone, which is slow. */
export async function stopProbes({ wait = false } = {}): Promise<void> {
  const selector = `--selector=${label}`;
  await kubectl(
    'delete',
    'pods',
    '--all-namespaces',
    selector,
    '--grace-period=0',
    '--force',
    `--wait=${wait}`,
  );
  await kubectl('delete', 'networkpolicies', '--all-namespaces', '--field-selector=metadata.name=probe-open');
  await kubectl('delete', 'namespaces', selector, `--wait=${wait}`);
}

/** Returns the address of each target by name, mostly as `address:port`. */
export async function findTargets(): Promise<Map<string, string>> {
  const found = await list('/api/v1/services');
  const service = (namespace: string, name: string) => {
    const { spec } =
      found.find(({ metadata }) => metadata.namespace === namespace && metadata.name === name) ?? {};
    // Every unknown target would count as blocked.
    if (spec === undefined) throw new Error(`namespace ${namespace} has no Service ${name}`);
    return `${spec.clusterIP}:${spec.ports[0].port}`;
  };
  const [controlPlane] = await list('/api/v1/nodes', 'node-role.kubernetes.io/control-plane');
  const node: string = controlPlane.status.addresses[0].address;
  const dns = service('kube-system', 'kube-dns');
  const targets = new Map([
    ['postgres', service('postgres', 'postgres')],
    ['api-server', service('default', 'kubernetes')],
    ['dns over TCP', dns],
    ['dns', `udp:${dns}`],
    ['kubelet', `${node}:10250`],
    ['outside the cluster', await findOutsider(node)],
    [url, url],
  ]);
  for (const name of services) {
    const { status } = await readyPod(name);
    targets.set(`${name}:http`, service(name, name));
    targets.set(`${name}:metrics`, `${status.podIP}:9091`);
  }
  for (const { metadata, status } of await list('/api/v1/pods', label)) {
    const at = `${status.podIP}:${port}`;
    if (metadata.namespace === 'elsewhere' && metadata.name !== 'probe-anyone') targets.set('elsewhere', at);
    if (metadata.name === 'probe-bystander') targets.set(`bystander in ${metadata.namespace}`, at);
  }
  return targets;
}

/**
 * Finds a target outside the cluster's nodes: its registry, which answers even on a machine without a network.
 * @param node the address of a node
 */
async function findOutsider(node: string): Promise<string> {
  const text = await readRegistry();
  const [, host = '', itsPort = ''] =
    /hostFromContainerRuntime: "?([^:"\s]+):(\d+)/.exec(text) ??
    /hostFromClusterNetwork: "?([^:"\s]+):(\d+)/.exec(text) ??
    [];
  const { stdout } = await execute('docker', [
    'inspect',
    '--format={{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}',
    host,
  ]);
  // The registry is in Docker's default network, which pods cannot reach, and in kind's.
  const addresses = stdout.trim().split(/\s+/);
  const near = addresses.find((address) => address.split('.')[1] === node.split('.')[1]);
  return `${near ?? addresses[0]}:${itsPort}`;
}

/**
 * Tries all targets and prints those that answer. `timeout` handles dropped packets, which get no answer. The final dot
 * of the name keeps the resolver from trying the search domains of the host first.
 */
const connect = `for target in "$@"; do
  (
    case $target in
      udp:*) timeout 2 getent hosts kubernetes.default.svc.cluster.local. >/dev/null ;;
      *) timeout 2 bash -c ": </dev/tcp/\${target%:*}/\${target##*:}" 2>/dev/null ;;
    esac && echo "$target"
  ) &
done
wait`;

/** Lets every probe try its targets. @returns the flows that differ from the matrix */
export async function wrongFlows(targets: Map<string, string>, tried = flows): Promise<Flow[]> {
  const byProbe = Map.groupBy(tried, ({ from }) => probeId(from));
  const found = await Promise.all(
    [...byProbe.values()].map(async (own) => {
      const { from } = own[0]!;
      const wanted = own.map(({ to }) => {
        const target = targets.get(to);
        // An unknown target must not count as blocked.
        if (target === undefined) throw new Error(`findTargets does not know where ${to} is`);
        return target;
      });
      const reached = await (from === thisMachine ? answersHere() : connectFrom(from, wanted));
      return own.filter(({ reaches }, n) => reached.includes(wanted[n]!) !== reaches);
    }),
  );
  return found.flat();
}

async function connectFrom(probe: Probe, targets: string[]): Promise<string[]> {
  const command = ['bash', '-c', connect, 'bash', ...targets];
  return (await exec(probe.namespace, podName(probe), command)).split('\n');
}

/**
 * Reports whether this machine gets any response. Traefik itself answers for a host that no Ingress names, so the way
 * from Traefik to invoice-app plays no part. Uses curl, because a kept connection outlives the policy that allowed it.
 */
async function answersHere(): Promise<string[]> {
  const options = [
    '--silent',
    '--insecure',
    '--max-time',
    '3',
    '--output',
    '/dev/null',
    '--header',
    'Host: nobody',
  ];
  return execute('curl', [...options, url]).then(
    () => [url],
    () => [],
  );
}
