// The files to save, and how to identify the code that is served.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { kubectl, paying } from '../../tests/cluster/cluster.ts';
import { hashSource } from '../../libraries/chassis/src/source.ts';
import { bodyOf, type Way } from './clock.ts';

/** The services to save. `/version` of the first one, invoice-app, reports the sources of both. */
export const services = paying;
export type Service = (typeof services)[number];

/** The body of invoice-app's `/version`. It includes that of payment-provider, or null if there is none. */
export type Version = { source: string; instance: string; provider: Version | null };

export async function version(url: string): Promise<Version> {
  return JSON.parse(await bodyOf(`${url}/version`));
}

/**
 * Returns the `Way` that saves `src/service.ts` of a service in `folder`, a copy of the tree.
 * @param url of invoice-app, whose `/version` has the hashes of both services
 */
export function serviceWay(folder: string, service: Service, url: string): Way {
  return {
    ...fileIn(folder, `services/${service}/src/service.ts`),
    name: service,
    url: `${url}/version`,
    saved: () => hashSource(folder, service),
    served: (answer) => {
      const { source, provider }: Version = JSON.parse(answer);
      return service === 'invoice-app' ? source : provider?.source;
    },
  };
}

/**
 * Returns the `Way` that saves the file that floor/server.ts reads for each request. No process restarts, so the other
 * ways in the cluster cannot be faster.
 */
export function floorWay(folder: string, url: string): Way {
  const file = fileIn(folder, 'bench/loop/floor/served/code.txt');
  return {
    ...file,
    name: 'floor',
    url,
    saved: () => readFileSync(file.file, 'utf8'),
    served: (answer) => answer,
  };
}

/** Returns the `Way` that saves invoice-app in the copy of the tree that nodemon and tsx run. */
export function plainWay(folder: string, url: string): Way {
  return { ...serviceWay(join(folder, 'plain'), 'invoice-app', url), name: 'plain', mend: killServers };
}

/**
 * Kills every process that runs main.ts, because one that nodemon lost track of would keep the port. nodemon itself
 * survives as PID 1, and starts main.ts after the next save.
 */
function killServers(): Promise<string> {
  const script = 'for p in /proc/[0-9]*; do ! grep -q [m]ain.ts $p/cmdline || kill -9 ${p##*/}; done';
  const container = ['--namespace=invoice-app', '--container=plain', 'deployment/invoice-app'];
  return kubectl('exec', ...container, '--', 'sh', '-c', script);
}

function fileIn(folder: string, name: string) {
  const file = join(folder, name);
  return { file, original: readFileSync(file, 'utf8') };
}
