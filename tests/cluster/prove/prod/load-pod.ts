import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { kubectl, kubectlWith, until } from '../../cluster.ts';
import type { Report } from './load.ts';

export interface LoadOptions {
  seconds: number;
  workers?: number;
  /** The pause between two requests of one worker, in milliseconds. */
  pause?: number;
  /** Only reads invoices, over keep-alive connections. */
  only?: 'kept';
  /** The node to run on; any node if omitted. */
  node?: string;
}

const namespace = 'ingress';
const name = 'load';

/**
 * Starts a pod that calls invoice-app through its Service. It has the namespace and label of Traefik, as invoice-app's
 * network policy admits nobody else. It runs the image of invoice-app, which every node has.
 */
export async function startLoad(options: LoadOptions): Promise<void> {
  await stopLoad();
  const read = (kind: string, path: string) =>
    kubectl('get', kind, 'invoice-app', '--namespace=invoice-app', `--output=jsonpath={${path}}`);
  const image = await read('deployment', '.spec.template.spec.containers[0].image');
  // Uses the IP address, so that moving a name server does not disturb the load.
  const target = `http://${await read('service', '.spec.clusterIP')}:8081`;
  const env = {
    TARGET: target,
    SECONDS: options.seconds,
    WORKERS: options.workers ?? 10,
    PAUSE_MS: options.pause ?? 50,
    ONLY: options.only ?? '',
  };
  const script = await readFile(join(import.meta.dirname, 'load.ts'), 'utf8');
  await kubectlWith(
    [
      { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name, namespace }, data: { 'load.ts': script } },
      {
        apiVersion: 'v1',
        kind: 'Pod',
        metadata: { name, namespace, labels: { 'app.kubernetes.io/name': 'traefik' } },
        spec: {
          restartPolicy: 'Never',
          automountServiceAccountToken: false,
          terminationGracePeriodSeconds: 0,
          ...(options.node && { nodeName: options.node }),
          securityContext: {
            runAsNonRoot: true,
            runAsUser: 65532,
            seccompProfile: { type: 'RuntimeDefault' },
          },
          containers: [
            {
              name,
              image,
              args: ['/load/load.ts'],
              env: Object.entries(env).map(([key, value]) => ({ name: key, value: String(value) })),
              resources: { requests: { cpu: '50m' }, limits: { cpu: '1', memory: '256Mi' } },
              securityContext: {
                allowPrivilegeEscalation: false,
                readOnlyRootFilesystem: true,
                capabilities: { drop: ['ALL'] },
              },
              volumeMounts: [{ name, mountPath: '/load' }],
            },
          ],
          volumes: [{ name, configMap: { name } }],
        },
      },
    ],
    'create',
    '--filename=-',
  );
  await until('the load runs', 60, async () => (await readPhase()) === 'Running');
}

async function readPhase(): Promise<string> {
  return await kubectl('get', 'pod', name, `--namespace=${namespace}`, '--output=jsonpath={.status.phase}');
}

/** Waits until the load ends. @throws {Error} with its log if the load failed */
export async function endOfLoad(seconds: number): Promise<Report> {
  const phase = await until('the load ends', seconds, async () => {
    const now = await readPhase();
    return now !== 'Running' && now;
  });
  const log = await kubectl('logs', name, `--namespace=${namespace}`);
  if (phase !== 'Succeeded') throw new Error(`the load ended as ${phase}: ${log}`);
  return JSON.parse(log);
}

export async function isLoadRunning(): Promise<boolean> {
  return (await readPhase()) === 'Running';
}

export async function stopLoad(): Promise<void> {
  const target = [`pod/${name}`, `configmap/${name}`, `--namespace=${namespace}`];
  await kubectl('delete', '--ignore-not-found', ...target);
}
