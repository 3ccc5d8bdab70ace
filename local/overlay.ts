// What the manifests set for local processes: the environment of each service.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { parse } from 'yaml';
import { readServices, type Service } from '../scripts/services.ts';

/** Variables by service. */
export type Environments = Record<string, Record<string, string>>;

/** Thrown with a message that is meant for the user as it is. */
export class OverlayError extends Error {}

interface Kustomization {
  resources?: string[];
  components?: string[];
  patches?: { patch?: string; path?: string }[];
}
interface Deployment {
  kind: string;
  metadata?: { name: string };
  spec: { template: { spec: { containers: { name: string; env?: { name: string; value?: string }[] }[] } } };
}

const root = path.resolve(import.meta.dirname, '..');

/**
 * Reads the addresses of other services that a service's folder sets, as they are on this machine. The other variables
 * there, such as the paths of tokens, mean something in a cluster only.
 * @param services those of the list, each with its port in a cluster and the one that it has here
 * @throws {OverlayError} where a port is not that of the service that has the name
 */
export function readAddresses(
  service: string,
  services: (Pick<Service, 'name' | 'port'> & { localPort: number })[],
  folder = root,
): Record<string, string> {
  const deploy = path.join(folder, 'services', service, 'deploy');
  const variables = readPatches(deploy).flatMap((patch) => environmentOf(patch) ?? []);
  const addresses: Record<string, string> = {};
  for (const { name, value = '' } of variables) {
    const [origin = '', host, port] = /^http:\/\/([^./]+)\.\1:(\d+)(?=\/|$)/.exec(value) ?? [];
    const called = services.find((each) => each.name === host);
    if (called === undefined) continue;
    if (called.port !== Number(port))
      throw new OverlayError(
        `services/${service}/deploy: ${name} has port ${port} of ${host}, which listens on ${called.port}`,
      );
    addresses[name] = value.replace(origin, `http://127.0.0.1:${called.localPort}`);
  }
  return addresses;
}

/**
 * Reads what an overlay sets beyond dev.
 * @throws {OverlayError} where it is none, or changes more than the services' environment
 */
export function readOverlay(name: string): Environments {
  if (name === 'dev') return {};
  const environments = /^[\w-]+$/.test(name) ? read(name) : undefined;
  if (environments !== undefined) return environments;
  const overlays = readdirSync(path.join(root, 'kustomize/overlays'));
  const possible = overlays.filter((each) => each === 'dev' || read(each) !== undefined);
  throw new OverlayError(
    `OVERLAY=${name} is not for local processes, which can be ${possible.join(' or ')}: MODE=cluster has the others`,
  );
}

/** Undefined where it is not dev with components that set variables. */
function read(name: string): Environments | undefined {
  const folder = path.join(root, 'kustomize/overlays', name);
  if (!existsSync(path.join(folder, 'kustomization.yaml'))) return undefined;
  const { resources, components = [], ...others } = readKustomization(folder);
  const isDev = resources?.join() === '../dev';
  if (!isDev || Object.keys(others).some((key) => key !== 'apiVersion' && key !== 'kind')) return undefined;
  const services = readServices();
  const environments: Environments = {};
  for (const component of components) {
    const componentFolder = path.join(folder, component);
    if (readKustomization(componentFolder).resources !== undefined) return undefined;
    for (const patch of readPatches(componentFolder)) {
      const env = environmentOf(patch);
      const service = services.find((each) => each.name === patch.metadata?.name)?.name;
      // A name that is no service's stands for any.
      if (env === undefined || service === undefined) return undefined;
      const variables = Object.fromEntries(env.map((variable) => [variable.name, variable.value ?? '']));
      environments[service] = { ...environments[service], ...variables };
    }
  }
  return environments;
}

function readPatches(folder: string): Deployment[] {
  const { patches = [] } = readKustomization(folder);
  return patches.map((each) => parse(each.patch ?? readFileSync(path.join(folder, each.path ?? ''), 'utf8')));
}

/** The variables that a patch sets; undefined for one that is not of a Deployment's environment. */
function environmentOf(patch: Deployment) {
  if (patch.kind !== 'Deployment') return undefined;
  return patch.spec.template.spec.containers.find(({ name }) => name === 'app')?.env;
}

function readKustomization(folder: string): Kustomization {
  return parse(readFileSync(path.join(folder, 'kustomization.yaml'), 'utf8'));
}
