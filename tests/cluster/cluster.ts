import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import { Agent, setGlobalDispatcher } from 'undici';
import { readServices } from '../../scripts/services.ts';

export { paying } from '../support/paying.ts';

/** What the tests ask of the cluster that ctlptl.yaml makes. */

export const overlay = process.env.OVERLAY ?? 'dev';
/** In the prod-like run through the Ingress. */
export const url = overlay === 'prod' ? 'https://invoice-app.localhost:8443' : 'http://localhost:8081';
/** The container that is the cluster's node. */
export const nodeContainer = 'payloop-control-plane';
export const services = readServices().map(({ name }) => name);

const run = promisify(execFile);

const certificate = join(import.meta.dirname, '../../.payloop/certificate.pem');
if (overlay === 'prod' && existsSync(certificate)) {
  // What `fetch` trusts; and where any name is, as not every system knows the names below localhost.
  const lookup: NonNullable<Agent.Options['connect']> = {
    ca: readFileSync(certificate),
    lookup: (_name, _options, answer) => answer(null, [{ address: '127.0.0.1', family: 4 }]),
  };
  setGlobalDispatcher(new Agent({ connect: lookup }));
}

/** Runs kubectl on the project's cluster. @throws {Error} with kubectl's message when it fails */
export async function kubectl(...args: string[]): Promise<string> {
  const { stdout } = await run('kubectl', ['--context=kind-payloop', ...args], { maxBuffer: 64 * 1024 ** 2 });
  return stdout;
}

/** The same, with an object or several as its input, as for `--filename=-`. */
export async function kubectlWith(input: object | readonly object[], ...args: string[]): Promise<string> {
  const running = run('kubectl', ['--context=kind-payloop', ...args], { maxBuffer: 64 * 1024 ** 2 });
  running.child.stdin?.end(
    JSON.stringify(Array.isArray(input) ? { apiVersion: 'v1', kind: 'List', items: input } : input),
  );
  return (await running).stdout;
}

/** What the cluster says of its registry: https://github.com/kubernetes/enhancements, KEP 1755. */
export function readRegistry(): Promise<string> {
  const output = '--output=jsonpath={.data.localRegistryHosting\\.v1}';
  return kubectl('get', 'configmap', 'local-registry-hosting', '--namespace=kube-public', output);
}

/** Runs a command in a container, and gives what it wrote. @throws {Error} with the message when it fails */
export function inContainer(namespace: string, target: string, command: string[]): Promise<string> {
  return kubectl('exec', `--namespace=${namespace}`, target, '--', ...command);
}

/** Runs a script in a service's container, where Node may be all that there is, and gives what it wrote. */
export function runScript(service: string, target: string, script: string): Promise<string> {
  const node = overlay === 'prod' ? '/nodejs/bin/node' : 'node';
  return inContainer(service, target, [node, '--input-type=module', '--eval', script]);
}

/** Runs a statement as the superuser, and gives the rows, a line each. */
export async function sql(database: string, statement: string): Promise<string> {
  const psql = ['psql', '--username=postgres', '--quiet', '--tuples-only', '--no-align'];
  return await inContainer('postgres', 'postgres-0', [
    ...psql,
    `--dbname=${database}`,
    `--command=${statement}`,
  ]);
}

/** The parts of a Pod that the tests look at. */
export interface Pod {
  metadata: { name: string; uid: string; deletionTimestamp?: string };
  status: {
    conditions?: { type: string; status: string }[];
    containerStatuses?: { restartCount: number; imageID: string }[];
  };
}

/** The pods of a namespace, without those that are on their way out. */
export async function pods(namespace: string): Promise<Pod[]> {
  const { items } = JSON.parse(await kubectl('get', 'pods', `--namespace=${namespace}`, '--output=json'));
  return (items as Pod[]).filter((pod) => pod.metadata.deletionTimestamp === undefined);
}

export function isReady(pod: Pod): boolean {
  return pod.status.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True') ?? false;
}

/** How often the containers of a pod were started again. */
export function restarts(pod: Pod): number {
  return (pod.status.containerStatuses ?? []).reduce((sum, { restartCount }) => sum + restartCount, 0);
}

/** Asks until the answer is neither undefined nor false; what it throws meanwhile counts as no answer. */
export async function until<T>(
  what: string,
  seconds: number,
  ask: () => T | undefined | false | Promise<T | undefined | false>,
): Promise<T> {
  const end = performance.now() + seconds * 1_000;
  let problem: unknown;
  while (performance.now() < end) {
    try {
      const answer = await ask();
      if (answer !== undefined && answer !== false) return answer;
    } catch (error) {
      problem = error;
    }
    await setTimeout(20);
  }
  throw new Error(`not within ${seconds} s: ${what}`, { cause: problem });
}
