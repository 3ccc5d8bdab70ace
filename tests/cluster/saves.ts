import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { hashSource } from '../../libraries/chassis/src/source.ts';
import { ask } from './ask.ts';
import { pods, restarts, paying, until, url } from './cluster.ts';
import type { Tilt } from './tilt.ts';

/** Helpers that edit the folder that Tilt watches and check the running services. */

export type Service = (typeof paying)[number];
/** The source hash of each service. */
export type Sources = Record<Service, string>;

interface Version {
  source: string;
  provider: { source: string } | null;
}

/** Returns the source hashes of the running services; undefined if invoice-app gets no answer from the provider. */
export async function runningSources(): Promise<Sources | undefined> {
  // Uses a new connection, because a kept one may lead to a pod that is gone.
  const { body } = await ask(`${url}/version`, { patience: 2_000 });
  const { source, provider } = JSON.parse(body) as Version;
  return provider === null ? undefined : { 'invoice-app': source, 'payment-provider': provider.source };
}

export function folderSources({ folder }: Tilt): Sources {
  return Object.fromEntries(paying.map((service) => [service, hashSource(folder, service)])) as Sources;
}

/** Waits until both services run the code in the folder. */
export async function waitUntilServed(tilt: Tilt, seconds = 20): Promise<void> {
  const sources = folderSources(tilt);
  await until(`${url}/version reports the source hashes of the folder`, seconds, async () => {
    const now = await runningSources();
    return paying.every((service) => now?.[service] === sources[service]);
  });
}

/** Waits until the log, after a position, reports a payment test that passed against the code in the folder. */
export async function waitUntilTested(tilt: Tilt, from: number): Promise<void> {
  const { 'invoice-app': app, 'payment-provider': provider } = folderSources(tilt);
  const line = 'payment-test │ ';
  const seen = `${line}# invoice-app ${app}\n *${line}# payment-provider ${provider}\n`;
  await tilt.waitForLine(new RegExp(`${seen}[^]*${line}ok 8`), from, 30);
}

/** Appends text to a file in the folder. @returns a function that undoes the change */
export async function append({ folder }: Tilt, file: string, text: string): Promise<() => Promise<void>> {
  const path = join(folder, file);
  const before = await readFile(path, 'utf8');
  await writeFile(path, before + text);
  return () => writeFile(path, before);
}

/** Counts the reloads of a service in the log after a position. */
export function reloads({ log }: Tilt, service: Service, from: number): number {
  return log.slice(from).split(`[reload] ${service} runs the new code`).length - 1;
}

/** Returns the pods of both services with their restart counts. */
export async function containers(): Promise<unknown> {
  const found = (await Promise.all(paying.map((service) => pods(service)))).flat();
  return found.map((pod) => ({ pod: pod.metadata.name, restarts: restarts(pod) }));
}
