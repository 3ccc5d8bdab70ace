import { expect, test } from 'vitest';
import { exec, list, request } from './api.ts';
import { isReady, overlay, pods, readPodSpec, runScript, services, sql, until, url } from './cluster.ts';

const replicas = overlay === 'prod' ? 3 : 1;

test.each([...services.map((service) => [service, replicas] as const), ['postgres', 1] as const])(
  'every pod of %s is ready, and there are at least %i',
  async (namespace, least) => {
    // The load of another test may make the autoscaler add a pod.
    const found = await until('every pod is ready', 60, async () => {
      const all = await pods(namespace);
      return all.every(isReady) && all;
    });
    expect(found.length).toBeGreaterThanOrEqual(least);
  },
);

/** Reports the rights of its process and the folders it can write to. Written for Node: the prod image has no shell. */
const selfReport = `
  import { existsSync, readFileSync, writeFileSync, rmSync } from 'node:fs';
  const status = readFileSync('/proc/self/status', 'utf8');
  const field = (name) => status.match(new RegExp('^' + name + ':\\\\s*(\\\\S+)', 'm'))[1];
  const canWrite = (folder) => {
    try {
      writeFileSync(folder + '/probe', '');
      rmSync(folder + '/probe');
      return true;
    } catch (error) {
      return error.code;
    }
  };
  console.log(JSON.stringify({
    user: [process.getuid(), process.getgid()],
    capabilities: [field('CapEff'), field('CapBnd')].map((mask) => parseInt(mask, 16)),
    gainsPrivileges: field('NoNewPrivs') !== '1',
    seccomp: field('Seccomp'),
    root: canWrite('/'), app: canWrite('/app'), tmp: canWrite('/tmp'),
    token: existsSync('/var/run/secrets/kubernetes.io'),
  }))`;

test.each(services)('%s runs with the restrictions of its manifest', async (service) => {
  expect(JSON.parse(await runScript(service, selfReport))).toEqual({
    user: [65532, 65532],
    capabilities: [0, 0],
    gainsPrivileges: false,
    // 2: system calls are filtered.
    seccomp: '2',
    root: 'EROFS',
    app: 'EROFS',
    tmp: true,
    // The token that Kubernetes mounts by default.
    token: false,
  });
});

test('Postgres runs as its own user on a read-only root', async () => {
  const script = 'id -u; touch /probe 2>&1 || true';
  const report = await exec('postgres', 'postgres-0', ['sh', '-c', script]);
  expect(report).toMatch(/^999\n.*Read-only file system/);
});

test.each(services)('%s can connect only to its own database', async (service) => {
  const databases = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'";
  const all = (await sql('postgres', `${databases} ORDER BY 1`)).trim().split('\n');
  const own = service.replaceAll('-', '_');
  expect(all).toEqual(expect.arrayContaining(services.map((each) => each.replaceAll('-', '_'))));
  const open = await sql('postgres', `${databases} AND has_database_privilege('${own}', datname, 'CONNECT')`);
  expect(open.trim()).toBe(own);
});

/** Creates an object without keeping it: every rule of the cluster applies. */
function tryToCreate(kind: 'Pod' | 'Service', namespace: string, spec: object): Promise<any> {
  return request(`/api/v1/namespaces/${namespace}/${kind.toLowerCase()}s?dryRun=All`, {
    method: 'POST',
    body: { apiVersion: 'v1', kind, metadata: { name: 'probe' }, spec },
  });
}

/** The service that development exposes on a port of the node. */
const exposedService = 'invoice-app';

test('the only entry point is the Ingress, or in development a port of invoice-app', async () => {
  const open = (await list('/api/v1/services'))
    .filter(({ spec }: { spec: { type: string } }) => spec.type !== 'ClusterIP')
    .map(({ metadata }: { metadata: { name: string } }) => metadata.name);
  expect(open).toEqual([overlay === 'prod' ? 'traefik' : exposedService]);
  const answer = await fetch(`${url}/livez`);
  expect(await answer.text()).toBe('ok');
});

test.runIf(overlay === 'prod')('the entry point accepts only TLS for the certificate name', async () => {
  expect((await fetch(`${url}/livez`.replace('https:', 'http:'))).status).toBe(404);
  await expect(fetch('http://localhost:8081/livez')).rejects.toThrow('fetch failed');
  await expect(fetch(`${url}/livez`.replace('invoice-app.', 'other.'))).rejects.toThrow('fetch failed');
});

test.each([
  ...[...services, 'postgres'].map((namespace) => [namespace, 'LoadBalancer']),
  ...[...services, 'postgres']
    .filter((name) => name !== exposedService)
    .map((namespace) => [namespace, 'NodePort']),
] as const)('the quota of %s forbids a Service of type %s', async (namespace, type) => {
  const create = tryToCreate('Service', namespace, { type, ports: [{ port: 80 }] });
  await expect(create).rejects.toThrow(/exceeded quota/);
});

test.each([...services, 'postgres'])('the quota and limits of %s bound its resources', async (namespace) => {
  const create = (resources: object) =>
    tryToCreate('Pod', namespace, {
      securityContext: { runAsNonRoot: true, runAsUser: 65532, seccompProfile: { type: 'RuntimeDefault' } },
      // Eight containers exceed the quota while each is within its own limit.
      containers: Array.from({ length: 8 }, (_, n) => ({
        name: `c${n}`,
        image: 'postgres:18',
        resources: { requests: resources, limits: resources },
        securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: ['ALL'] } },
      })),
    });
  await expect(create({ cpu: '10m', memory: '8Mi' })).resolves.toMatchObject({ kind: 'Pod' });
  await expect(create({ cpu: '1', memory: '8Mi' })).rejects.toThrow(/exceeded quota: .*requests.cpu=2/);
  await expect(create({ cpu: '10m', memory: '1Gi' })).rejects.toThrow(
    /exceeded quota: .*requests.memory=2Gi/,
  );
  await expect(create({ cpu: '3', memory: '8Mi' })).rejects.toThrow(/maximum cpu usage per Container is 2/);
  await expect(create({ cpu: '10m', memory: '2Gi' })).rejects.toThrow(
    /maximum memory usage per Container is 1Gi/,
  );
});

test.runIf(overlay === 'prod').each(services)('the autoscaler of %s works', async (service) => {
  const path = `/apis/autoscaling/v2/namespaces/${service}/horizontalpodautoscalers/${service}`;
  const { desiredReplicas, conditions } = await until('it has looked at the Deployment', 50, async () => {
    const { status } = await request(path);
    return status.desiredReplicas > 0 && status;
  });
  expect(desiredReplicas).toBeGreaterThanOrEqual(replicas);
  expect(conditions).toContainEqual(expect.objectContaining({ type: 'AbleToScale', status: 'True' }));
});

test.runIf(overlay === 'prod').each(services)('%s has a separate path for each probe', async (service) => {
  const [container] = (await readPodSpec(service)).containers;
  const paths = [container.startupProbe, container.livenessProbe, container.readinessProbe].map(
    (probe) => probe.httpGet.path,
  );
  expect(paths).toEqual(['/startupz', '/livez', '/readyz']);
});

test.runIf(overlay === 'prod').each(services)('%s is spread over nodes and zones', async (service) => {
  const { affinity, topologySpreadConstraints } = await readPodSpec(service);
  const [{ podAffinityTerm }] = affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution;
  const wishes = [podAffinityTerm, ...topologySpreadConstraints];
  expect(wishes.map(({ topologyKey }) => topologyKey)).toEqual([
    'kubernetes.io/hostname',
    'topology.kubernetes.io/zone',
  ]);
  // Only pods of the same release count; otherwise a rollout would count the pods that it replaces.
  for (const { labelSelector, matchLabelKeys } of wishes) {
    expect(labelSelector.matchLabels).toEqual({ 'app.kubernetes.io/part-of': 'payloop' });
    expect(matchLabelKeys).toEqual(['app.kubernetes.io/name', 'pod-template-hash']);
  }
});

// With different priorities, one more replica of a service could preempt the pods that it depends on.
test.runIf(overlay === 'prod')('every pod has the same priority', async () => {
  const all = await list('/api/v1/pods', 'app.kubernetes.io/part-of=payloop,!payloop/probe');
  const classes = all.map(({ spec }) => spec.priorityClassName);
  // Three replicas of each service, and the pods of Postgres, the ingress controller and metrics-server.
  expect(classes.length).toBeGreaterThanOrEqual(3 * services.length + 3);
  expect(new Set(classes)).toEqual(new Set(['payloop-service']));
});

test.each(services)('a pod in %s that violates restricted Pod Security is refused', async (service) => {
  const create = tryToCreate('Pod', service, { containers: [{ name: 'root', image: 'postgres:18' }] });
  await expect(create).rejects.toThrow(/violates PodSecurity "restricted/);
});
