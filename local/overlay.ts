// Reads the environment of each service from the manifests, for local processes.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { parse } from 'yaml';
import { readServices, type Service } from '../scripts/services.ts';

/** Variables by service. */
export type Environments = Record<string, Record<string, string>>;

/** An error with a message for the user, printed without a stack. */
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
 * Reads the variables with addresses of other services from a service's folder, and translates them to this machine.
 * The other variables, such as the paths of tokens, only make sense in a cluster.
 * @param services all services, each with its port in a cluster and its port here
 * @throws {OverlayError} if an address has another port than the service it names
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
        `services/${service}/deploy: ${name} has port ${port} for ${host}, which listens on ${called.port}`,
      );
    addresses[name] = value.replace(origin, `http://127.0.0.1:${called.localPort}`);
  }
  return addresses;
}

/**
 * Reads the variables that an overlay sets in addition to dev.
 * @throws {OverlayError} if there is no such overlay, or it changes more than the services' environment
 */
export function readOverlay(name: string): Environments {
  if (name === 'dev') return {};
  const environments = /^[\w-]+$/.test(name) ? read(name) : undefined;
  if (environments !== undefined) return environments;
  const overlays = readdirSync(path.join(root, 'kustomize/overlays'));
  const possible = overlays.filter((each) => each === 'dev' || read(each) !== undefined);
  throw new OverlayError(
    `OVERLAY=${name} does not work with local processes: use ${possible.join(' or ')}, or set MODE=cluster`,
  );
}

/** Returns undefined unless the overlay is dev plus components that set variables. */
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
      // A patch with any other name applies to every Deployment.
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

/** The variables that a patch sets; undefined if it does not patch a Deployment's environment. */
function environmentOf(patch: Deployment) {
  if (patch.kind !== 'Deployment') return undefined;
  return patch.spec.template.spec.containers.find(({ name }) => name === 'app')?.env;
}

function readKustomization(folder: string): Kustomization {
  return parse(readFileSync(path.join(folder, 'kustomization.yaml'), 'utf8'));
}
