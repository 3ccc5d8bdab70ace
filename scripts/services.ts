import { readFileSync } from 'node:fs';
import path from 'node:path';
import { parse } from 'yaml';

/** A service of `services/`, as its folder describes it. */
export interface Service {
  /** The name of its folder, its namespace and its objects: a DNS label. */
  name: string;
  /** The port that it listens on, in a container and on this machine. */
  port: number;
  /** The tag of its image in production. */
  release: string;
}

const root = path.resolve(import.meta.dirname, '..');

/**
 * Returns the services that kustomize/base deploys, in its order.
 * @throws {Error} with the name of the file, if a service is not described as kustomize/service requires
 */
export function readServices(folder = root): Service[] {
  const { resources = [] } = read(folder, 'kustomize/base/kustomization.yaml');
  return resources.map((resource) => {
    const name = /^\.\.\/\.\.\/services\/([^/]+)\/deploy$/.exec(resource)?.[1];
    if (name === undefined)
      throw new Error(`kustomize/base/kustomization.yaml: ${resource} is not ../../services/NAME/deploy`);
    const file = `services/${name}/deploy/service.yaml`;
    const { data = {} } = read(folder, file);
    const port = Number(data.port);
    if (data.name !== name) throw new Error(`${file}: data.name must be ${name}, not ${String(data.name)}`);
    if (!Number.isInteger(port) || port < 1 || port > 65_535)
      throw new Error(`${file}: data.port must be a port, 1 to 65535, not ${String(data.port)}`);
    return { name, port, release: String(data.release) };
  });
}

/** Returns the team of a service's namespace, to which k8s/tenant binds roles. */
export function teamOf({ name }: Service, folder = root): string {
  const file = `services/${name}/namespace/tenant.yaml`;
  const { data = {} } = read(folder, file);
  if (data.name !== name) throw new Error(`${file}: data.name must be ${name}, not ${String(data.name)}`);
  if (typeof data.team !== 'string') throw new Error(`${file}: data.team must be a group's name`);
  return data.team;
}

/** The parts of a kustomization or a ConfigMap that are read here. */
interface Manifest {
  resources?: string[];
  data?: Record<string, unknown>;
}

function read(folder: string, file: string): Manifest {
  return parse(readFileSync(path.join(folder, file), 'utf8'));
}

/** Returns the name of a service's database and role, as k8s/local/databases.sh creates them. */
export function databaseOf({ name }: Service): string {
  return name.replaceAll('-', '_');
}

/** Returns the prefix of the variables about a service, such as that of INVOICE_APP_PORT. */
export function variablePrefix({ name }: Service): string {
  return name.replaceAll('-', '_').toUpperCase();
}

/** Returns the port of a service's inspector on this machine: 9229 for port 8081, 9230 for 8082, and so on. */
export function inspectPortOf({ port }: Service): number {
  return port + 9229 - 8081;
}
