import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { hashSource } from '../../libraries/chassis/src/source.ts';
import { ask } from './ask.ts';
import { pods, restarts, paying, until, url } from './cluster.ts';
import type { Tilt } from './tilt.ts';

/** What a test does to the folder that Tilt watches, and what it asks of the services then. */

export type Service = (typeof paying)[number];
/** The hash of the sources of each service. */
export type Sources = Record<Service, string>;

interface Version {
  source: string;
  provider: { source: string } | null;
}

/** What the running services are made of; undefined when they do not answer. */
export async function running(): Promise<Sources | undefined> {
  // Over a connection of its own: one that is kept may stay with a pod that is gone.
  const { body } = await ask(`${url}/version`, { patience: 2_000 });
  const { source, provider } = JSON.parse(body) as Version;
  return provider === null ? undefined : { 'invoice-app': source, 'payment-provider': provider.source };
}

export function inFolder({ folder }: Tilt): Sources {
  return Object.fromEntries(paying.map((service) => [service, hashSource(folder, service)])) as Sources;
}

/** Waits until both services run the code that is in the folder. */
export async function served(tilt: Tilt, seconds = 20): Promise<void> {
  const sources = inFolder(tilt);
  await until(`${url}/version shows what is in the folder`, seconds, async () => {
    const now = await running();
    return paying.every((service) => now?.[service] === sources[service]);
  });
}

/** Waits until the payment test has passed against the code that is in the folder, behind a position of the log. */
export async function tested(tilt: Tilt, from: number): Promise<void> {
  const { 'invoice-app': app, 'payment-provider': provider } = inFolder(tilt);
  const line = 'payment-test │ ';
  const seen = `${line}# invoice-app ${app}\n *${line}# payment-provider ${provider}\n`;
  await tilt.says(new RegExp(`${seen}[^]*${line}ok 8`), from, 30);
}

/** Adds to the end of a file of the folder. @returns what undoes it */
export async function append({ folder }: Tilt, file: string, text: string): Promise<() => Promise<void>> {
  const path = join(folder, file);
  const before = await readFile(path, 'utf8');
  await writeFile(path, before + text);
  return () => writeFile(path, before);
}

/** How often a service has taken up new code, behind a position of the log. */
export function reloads({ log }: Tilt, service: Service, from: number): number {
  return log.slice(from).split(`[reload] ${service} runs the new code`).length - 1;
}

/** The pods, each with how often its containers were started again. */
export async function containers(): Promise<unknown> {
  const found = (await Promise.all(paying.map((service) => pods(service)))).flat();
  return found.map((pod) => ({ pod: pod.metadata.name, restarts: restarts(pod) }));
}
