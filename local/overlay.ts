// What an overlay of kustomize/ changes for local processes: the environment of each service.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { parse } from 'yaml';

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
  metadata: { name: string };
  spec: { template: { spec: { containers: { name: string; env: { name: string; value: string }[] }[] } } };
}

const overlays = path.resolve(import.meta.dirname, '../kustomize/overlays');

/**
 * Reads what an overlay sets beyond dev.
 * @throws {OverlayError} where it is none, or changes more than the services' environment
 */
export function readOverlay(name: string): Environments {
  if (name === 'dev') return {};
  const environments = /^[\w-]+$/.test(name) ? read(name) : undefined;
  if (environments !== undefined) return environments;
  const possible = readdirSync(overlays).filter((each) => each === 'dev' || read(each) !== undefined);
  throw new OverlayError(
    `OVERLAY=${name} is not for local processes, which can be ${possible.join(' or ')}: MODE=cluster has the others`,
  );
}

/** Undefined where it is not dev with components that set variables. */
function read(name: string): Environments | undefined {
  const folder = path.join(overlays, name);
  if (!existsSync(path.join(folder, 'kustomization.yaml'))) return undefined;
  const { resources, components = [], ...others } = readKustomization(folder);
  const isDev = resources?.join() === '../dev';
  if (!isDev || Object.keys(others).some((key) => key !== 'apiVersion' && key !== 'kind')) return undefined;
  const environments: Environments = {};
  for (const component of components) {
    const { patches = [], resources: more } = readKustomization(path.join(folder, component));
    if (more !== undefined) return undefined;
    for (const { patch } of patches) {
      const deployment: Deployment | undefined = patch === undefined ? undefined : parse(patch);
      const env = deployment?.spec.template.spec.containers.find((each) => each.name === 'app')?.env;
      // A name that is no service's stands for any.
      if (deployment?.kind !== 'Deployment' || env === undefined || !isService(deployment.metadata.name))
        return undefined;
      const variables = Object.fromEntries(env.map((variable) => [variable.name, variable.value]));
      environments[deployment.metadata.name] = { ...environments[deployment.metadata.name], ...variables };
    }
  }
  return environments;
}

function isService(name: string): boolean {
  return existsSync(path.resolve(import.meta.dirname, '../services', name, 'src/main.ts'));
}

function readKustomization(folder: string): Kustomization {
  return parse(readFileSync(path.join(folder, 'kustomization.yaml'), 'utf8'));
}
