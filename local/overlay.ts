// Reads the environment of each service from the manifests, for local processes.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { parse } from 'yaml';
import { readServices, type Service } from '../scripts/services.ts';

/** Variables by service. */
export type Environments = Record<string, Record<string, string>>;

/** An error with a message for the user, printed without a stack. */
export class OverlayError extends Error {}

interface Kustomization {
  resources?: string[];
  components?: string[];
  patches?: { patch?: string; path?: string; target?: unknown }[];
}
/** The parts of a patch that are read. A patch may be for any object. A JSON patch is an array. */
interface Patch {
  kind?: string;
  metadata?: { name?: string };
  spec?: { template?: { spec?: { containers?: { name: string; env?: Variable[] }[] } } };
}
interface Variable {
  name: string;
  /** Undefined if the value comes from elsewhere, with `valueFrom`. */
  value?: string;
}

const root = path.resolve(import.meta.dirname, '..');

/**
 * Reads the variables with addresses of other services from a service's folder, and translates them to this machine.
 * It skips all other variables: some, such as the paths of tokens, only make sense in a cluster, and the user exports
 * the rest.
 * @param services all services, each with its port in a cluster and its port here
 * @throws {OverlayError} if an address has another port than the service it names
 */
export function readAddresses(
  service: string,
  services: (Pick<Service, 'name' | 'port'> & { localPort: number })[],
  folder = root,
): Record<string, string> {
  const deploy = path.join(folder, 'services', service, 'deploy');
  const variables = readPatches(deploy).flatMap(({ patch }) => environmentOf(patch) ?? []);
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
export function readOverlay(name: string, folder = root): Environments {
  if (name === 'dev') return {};
  const environments = /^[\w-]+$/.test(name) ? readVariables(name, folder) : undefined;
  if (environments !== undefined) return environments;
  const overlays = readdirSync(path.join(folder, 'kustomize/overlays'));
  const possible = overlays.filter((each) => each === 'dev' || readVariables(each, folder) !== undefined);
  throw new OverlayError(
    `OVERLAY=${name} does not work with local processes: use ${possible.join(' or ')}, or set MODE=cluster`,
  );
}

/**
 * Returns undefined unless the overlay is dev plus components that do nothing but set variables of services. Also for
 * what only kustomize can read, such as a component at a URL or a patch of several documents.
 */
function readVariables(name: string, base: string): Environments | undefined {
  const services = readServices();
  try {
    return readComponents(name, base, services);
  } catch {
    return undefined;
  }
}

function readComponents(
  name: string,
  base: string,
  services: readonly Pick<Service, 'name'>[],
): Environments | undefined {
  const folder = path.join(base, 'kustomize/overlays', name);
  if (!existsSync(path.join(folder, 'kustomization.yaml'))) return undefined;
  const overlay = readKustomization(folder);
  if (overlay.resources?.join() !== '../dev' || !hasOnly(overlay, 'resources', 'components'))
    return undefined;
  const environments: Environments = {};
  for (const component of overlay.components ?? []) {
    const componentFolder = path.join(folder, component);
    if (!hasOnly(readKustomization(componentFolder), 'patches')) return undefined;
    for (const { patch, target } of readPatches(componentFolder)) {
      const service = services.find((each) => each.name === patch.metadata?.name)?.name;
      const env = environmentOf(patch);
      if (service === undefined || env === undefined || !setsOnly(env, service, patch, target))
        return undefined;
      const variables = Object.fromEntries(env.map((variable) => [variable.name, variable.value]));
      environments[service] = { ...environments[service], ...variables };
    }
  }
  return environments;
}

/** Whether a patch sets these variables of this service, and nothing else. */
function setsOnly(env: Variable[], name: string, patch: Patch, target: unknown): env is Required<Variable>[] {
  const kind = 'Deployment';
  // A value from elsewhere and a number differ from their text.
  const containers = [
    { name: 'app', env: env.map((each) => ({ name: each.name, value: String(each.value) })) },
  ];
  const spec = { template: { spec: { containers } } };
  return (
    isDeepStrictEqual(patch, { apiVersion: 'apps/v1', kind, metadata: { name }, spec }) &&
    // A patch without a target is for the object that it names. One with a target is for all that the target selects.
    (target === undefined || isDeepStrictEqual(target, { kind, name }))
  );
}

function hasOnly(kustomization: Kustomization, ...fields: string[]): boolean {
  return Object.keys(kustomization).every((key) => ['apiVersion', 'kind', ...fields].includes(key));
}

function readPatches(folder: string): { patch: Patch; target: unknown }[] {
  const { patches = [] } = readKustomization(folder);
  return patches.map(({ patch, path: file = '', target }) => ({
    patch: parse(patch ?? readFileSync(path.join(folder, file), 'utf8')),
    target,
  }));
}

/** The variables that a patch sets; undefined if it does not patch a Deployment's environment. */
function environmentOf(patch: Patch): Variable[] | undefined {
  if (patch.kind !== 'Deployment') return undefined;
  return patch.spec?.template?.spec?.containers?.find(({ name }) => name === 'app')?.env;
}

function readKustomization(folder: string): Kustomization {
  return parse(readFileSync(path.join(folder, 'kustomization.yaml'), 'utf8'));
}
