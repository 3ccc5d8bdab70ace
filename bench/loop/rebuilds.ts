// Measures the bytes sent for a save, and the rebuild after changes that live update does not cover.
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Tilt } from '../../tests/cluster/tilt.ts';
import { median, patience, save, since } from './clock.ts';
import type { CountingProxy } from './counting-proxy.ts';
import { serviceWay, services, version, type Service } from './ways.ts';

/** How long sent bytes are counted, in milliseconds, with a save and without one. */
const window = 4_000;
const saves = 5;

/** Returns the median of the bytes that a one-line change sends to the cluster, less those sent without a change. */
export async function countBytes(tilt: Tilt, service: Service, url: string, proxy: CountingProxy) {
  const way = serviceWay(tilt.folder, service, url);
  const counts: number[] = [];
  for (let i = 0; i < saves; i += 1) {
    const atRest = await sentWhile(proxy, async () => {});
    counts.push((await sentWhile(proxy, () => save(way))) - atRest);
  }
  return { size: Buffer.byteLength(way.original), bytes: median(counts) };
}

async function sentWhile(proxy: CountingProxy, act: () => Promise<unknown>): Promise<number> {
  const before = proxy.sent;
  await Promise.all([act(), sleep(window)]);
  return proxy.sent - before;
}

/** Returns a new value each time, so that the build cache does not have the change from an earlier run. */
const unique = () => `changed-${Date.now()}`;

export interface Rebuild {
  what: string;
  images: string[];
  /** The layers that were not in the cache. */
  layers: string[];
  seconds: number;
}

/** Adds a package that invoice-app already uses to the dependencies of payment-provider. */
export function changeDependency(tilt: Tilt, url: string): Promise<Rebuild> {
  const [app, provider] = services;
  const manifest = join(tilt.folder, `services/${provider}/package.json`);
  const lockfile = join(tilt.folder, 'package-lock.json');
  return rebuild(`a dependency of ${provider}`, tilt, url, async () => {
    const { dependencies } = JSON.parse(
      await readFile(join(tilt.folder, `services/${app}/package.json`), 'utf8'),
    );
    const add = (to: Record<string, string>) => (to.cockatiel = dependencies.cockatiel);
    await edit(manifest, (json) => {
      add(json.dependencies);
      json.description = unique();
    });
    await edit(lockfile, (json) => add(json.packages[`services/${provider}`].dependencies));
  });
}

export function changeDockerfile(tilt: Tilt, url: string): Promise<Rebuild> {
  const file = join(tilt.folder, 'Dockerfile');
  return rebuild("a line of the Dockerfile's stage dev", tilt, url, async () => {
    const before = await readFile(file, 'utf8');
    const after = before.replace(/^FROM \S+ AS dev$/m, `$&\nENV CHANGED=${unique()}`);
    if (after === before) throw new Error(`${file} has no stage dev`);
    await writeFile(file, after);
  });
}

/**
 * Waits until both services answer from new pods. Recognizes them by their names, because the hash in `/version` covers
 * only the sources, which stay the same.
 */
async function rebuild(what: string, tilt: Tilt, url: string, change: () => Promise<void>): Promise<Rebuild> {
  const before = await pods(url);
  const from = tilt.log.length;
  const start = performance.now();
  await change();
  const ms = await since(start, patience.build, async () => {
    const now = await pods(url);
    return services.every((_, index) => now[index] !== undefined && now[index] !== before[index]);
  });
  if (ms === Infinity) throw new Error(`${what}: no new pods. Tilt printed:\n${tilt.log.slice(from)}`);
  const log = tilt.log.slice(from);
  const found = (pattern: RegExp) => [...new Set([...log.matchAll(pattern)].map(([, name]) => name ?? ''))];
  return {
    what,
    images: found(/Building Dockerfile: \[payloop\/(.+?)\]/g).toSorted(),
    layers: found(/ {2}\[(\w+ \d+\/\d+)\] .*\[done: /g),
    seconds: ms / 1_000,
  };
}

/** Returns the names of the pods that answer: the instance without its random suffix. */
async function pods(url: string): Promise<(string | undefined)[]> {
  const { instance, provider } = await version(url);
  return [instance, provider?.instance].map((name) => name?.replace(/-[^-]*$/, ''));
}

async function edit(file: string, change: (json: any) => void): Promise<void> {
  const json = JSON.parse(await readFile(file, 'utf8'));
  change(json);
  await writeFile(file, `${JSON.stringify(json, undefined, 2)}\n`);
}
