// The files to save, and how to identify the code that is served.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { kubectl, paying } from '../../tests/cluster/cluster.ts';
import { hashSource } from '../../libraries/chassis/src/source.ts';
import { bodyOf, type Way } from './clock.ts';

/** The services with code that `/version` of the first one reports. */
export const services = paying;
export type Service = (typeof services)[number];

/** The body of invoice-app's `/version`, the only place that shows the provider. */
export type Version = { source: string; instance: string; provider: Version | null };

export async function version(url: string): Promise<Version> {
  return JSON.parse(await bodyOf(`${url}/version`));
}

/** Saves to a service, as a developer makes them, in a copy of the tree. */
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

/** Saves to a file that is read for each request, see floor/. */
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

/** Saves to invoice-app, in the copy of the tree that nodemon and tsx run. */
export function plainWay(folder: string, url: string): Way {
  return { ...serviceWay(join(folder, 'plain'), 'invoice-app', url), name: 'plain', mend: killLost };
}

/** Kills processes that nodemon has lost track of: they keep the port from all later ones. */
function killLost(): Promise<string> {
  const script = 'for p in /proc/[0-9]*; do ! grep -q [m]ain.ts $p/cmdline || kill -9 ${p##*/}; done';
  const container = ['--namespace=invoice-app', '--container=plain', 'deployment/invoice-app'];
  return kubectl('exec', ...container, '--', 'sh', '-c', script);
}

function fileIn(folder: string, name: string) {
  const file = join(folder, name);
  return { file, original: readFileSync(file, 'utf8') };
}
