import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import { Agent, setGlobalDispatcher } from 'undici';
import { readServices } from '../../scripts/services.ts';
import { exec, list, request } from './api.ts';

export { paying } from '../support/paying.ts';

/** Queries and commands for the cluster that ctlptl.yaml creates. */

export const overlay = process.env.OVERLAY ?? 'dev';
/** In the prod-like run, requests go through the Ingress. */
export const url = overlay === 'prod' ? 'https://invoice-app.localhost:8443' : 'http://localhost:8081';
/** The container that is the cluster's node. */
export const nodeContainer = 'payloop-control-plane';
export const services = readServices().map(({ name }) => name);

const run = promisify(execFile);

const certificate = join(import.meta.dirname, '../../.payloop/certificate.pem');
if (overlay === 'prod' && existsSync(certificate)) {
  // `fetch` trusts this certificate and resolves every name to loopback: not all systems know names below localhost.
  const lookup: NonNullable<Agent.Options['connect']> = {
    ca: readFileSync(certificate),
    lookup: (_name, _options, answer) => answer(null, [{ address: '127.0.0.1', family: 4 }]),
  };
  setGlobalDispatcher(new Agent({ connect: lookup }));
}

/** Runs kubectl against the project's cluster. @throws {Error} with kubectl's message if it fails */
export async function kubectl(...args: string[]): Promise<string> {
  const { stdout } = await run('kubectl', ['--context=kind-payloop', ...args], { maxBuffer: 64 * 1024 ** 2 });
  return stdout;
}

/** Runs kubectl with one or more objects as its input, as for `--filename=-`. */
export async function kubectlWith(input: object | readonly object[], ...args: string[]): Promise<string> {
  const running = run('kubectl', ['--context=kind-payloop', ...args], { maxBuffer: 64 * 1024 ** 2 });
  running.child.stdin?.end(
    JSON.stringify(Array.isArray(input) ? { apiVersion: 'v1', kind: 'List', items: input } : input),
  );
  return (await running).stdout;
}

/** Reads the registry that the cluster announces: https://github.com/kubernetes/enhancements, KEP 1755. */
export async function readRegistry(): Promise<string> {
  const { data } = await request('/api/v1/namespaces/kube-public/configmaps/local-registry-hosting');
  return data['localRegistryHosting.v1'];
}

/** Waits for a ready pod of a service. */
export function readyPod(service: string): Promise<Pod> {
  return until(`a pod of ${service} is ready`, 20, async () => (await pods(service)).find(isReady));
}

/** Runs a script in a pod of a service and returns its output. Node may be the only program in the container. */
export async function runScript(service: string, script: string, pod?: string): Promise<string> {
  const node = overlay === 'prod' ? '/nodejs/bin/node' : 'node';
  return exec(service, pod ?? (await readyPod(service)).metadata.name, [
    node,
    '--input-type=module',
    '--eval',
    script,
  ]);
}

/** Returns the pod spec of a service's Deployment. */
export async function readPodSpec(service: string): Promise<any> {
  return (await request(`/apis/apps/v1/namespaces/${service}/deployments/${service}`)).spec.template.spec;
}

/** Runs a statement as the superuser and returns the rows, one per line. */
export async function sql(database: string, statement: string): Promise<string> {
  const psql = ['psql', '--username=postgres', '--quiet', '--tuples-only', '--no-align'];
  return await exec('postgres', 'postgres-0', [...psql, `--dbname=${database}`, `--command=${statement}`]);
}

/** The parts of a Pod that the tests use. */
export interface Pod {
  metadata: { name: string; uid: string; deletionTimestamp?: string };
  status: {
    podIP?: string;
    conditions?: { type: string; status: string }[];
    containerStatuses?: { restartCount: number; imageID: string }[];
  };
}

/** Returns the pods of a namespace, except those that are terminating and those of probes.ts. */
export async function pods(namespace: string): Promise<Pod[]> {
  const found: Pod[] = await list(`/api/v1/namespaces/${namespace}/pods`, '!payloop/probe');
  return found.filter((pod) => pod.metadata.deletionTimestamp === undefined);
}

export function isReady(pod: Pod): boolean {
  return pod.status.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True') ?? false;
}

/** Returns the number of restarts of a pod's containers. */
export function restarts(pod: Pod): number {
  return (pod.status.containerStatuses ?? []).reduce((sum, { restartCount }) => sum + restartCount, 0);
}

/**
 * Polls until the answer is neither undefined nor false. An error counts as no answer. Polls less and less often,
 * because a poll takes CPU from what it waits for.
 */
export async function until<T>(
  description: string,
  seconds: number,
  poll: () => T | undefined | false | Promise<T | undefined | false>,
): Promise<T> {
  const end = performance.now() + seconds * 1_000;
  let lastError: unknown;
  for (let pause = 20; performance.now() < end; pause = Math.min(1.5 * pause, 250)) {
    try {
      const answer = await poll();
      if (answer !== undefined && answer !== false) return answer;
    } catch (error) {
      lastError = error;
    }
    await setTimeout(pause);
  }
  throw new Error(`timed out after ${seconds} s, waiting for: ${description}`, { cause: lastError });
}
