// `make service NAME=… PORT=… TEAM=…` copies scripts/new-service to services/NAME, adds a line to each of the two
// lists, and adds the service to the lockfile as npm does. If an error occurs, it undoes its changes.
import * as fs from 'node:fs';
import path from 'node:path';
import { parse } from 'yaml';
import { inspectPortOf, readServices, type Service } from './services.ts';

const root = path.resolve(import.meta.dirname, '..');
const template = 'scripts/new-service';
const at = (...names: string[]) => path.join(root, ...names);
const read = (file: string) => fs.readFileSync(at(file), 'utf8');

/** The lists of services, each with the line that a service has in it. */
const lists = {
  'kustomize/base/kustomization.yaml': (name: string) => `  - ../../services/${name}/deploy`,
  'k8s/kustomization.yaml': (name: string) => `  - ../services/${name}/namespace`,
};
const lockfile = 'package-lock.json';
/** The copy of the lockfile that scripts/install.sh compares it with. */
const installed = 'node_modules/.package-lock.installed.json';

/**
 * The maximum length of a name, in characters. Postgres allows 63 in the name of a database, to which an overlay such
 * as `flaky` appends its own name.
 */
const maxNameLength = 50;

/** Names that a service must not have, by the meaning that they already have. */
const reserved: Record<string, RegExp> = {
  'an existing namespace or reserved for Kubernetes':
    /^(default|elsewhere|ingress|kube-.*|local-path-storage|metrics-server|monitoring|postgres)$/,
  'a resource of Tilt, or a part of make up':
    /^(certificate|databases|namespaces|payment-test|replicas|secrets|test|traefik|up)$/,
  'a role or a database of Postgres': /^(none|pg-.*|public|template[01])$/,
  // METRICS_PORT and INSPECT_PORT are about every service, and A_INSPECT_PORT is about service a.
  'part of the name of a variable': /^(metrics|(.*-)?inspect)$/,
  'a package of this repository': /^(chassis|local)$/,
};

const usage = 'make service NAME=… PORT=… [TEAM=…]';

/** YAML reads some words as another type, such as `on`. */
const isText = (word: string) => parse(word, { version: '1.1' }) === word;

function checkName(name: string | undefined): string {
  if (!name) throw new Error(`NAME is missing: ${usage}`);
  if (!/^[a-z]([a-z0-9-]*[a-z0-9])?$/.test(name) || name.length > maxNameLength) {
    throw new Error(
      `NAME must be at most ${maxNameLength} of a-z, 0-9 and -, start with a letter and not end with -, not ${JSON.stringify(name)}`,
    );
  }
  const meaning = Object.keys(reserved).find((each) => reserved[each]!.test(name));
  if (meaning !== undefined) throw new Error(`NAME must not be ${name}, which is ${meaning}`);
  if (!isText(name)) throw new Error(`NAME must not be ${name}, which YAML does not read as text`);
  if (fs.existsSync(at('services', name))) throw new Error(`services/${name} already exists`);
  for (const [file, line] of Object.entries(lists)) {
    if (read(file).split('\n').includes(line(name))) throw new Error(`${file} already lists ${name}`);
  }
  return name;
}

/** Maps each port in use to its owner: the environment, a service, or an inspector. */
function portsInUse(services: Service[]): Map<number, string> {
  const hostPorts = [...read('ctlptl.yaml').matchAll(/hostPort: (\d+)/g)].map(([, port]) => Number(port));
  return new Map([
    [9091, 'the metrics port of each service'],
    [9229, 'the inspector port of each container'],
    [10_350, "Tilt's"],
    [25_432, "the local Postgres's"],
    ...hostPorts.map((port) => [port, 'a host port of ctlptl.yaml'] as const),
    ...services.map((each) => [inspectPortOf(each), `the inspector port of ${each.name}`] as const),
    ...services.map(({ name, port }) => [port, `${name}'s`] as const),
  ]);
}

function checkPort(text: string | undefined, name: string): Service {
  const services = readServices();
  const inUse = portsInUse(services);
  const of = (port: number): Service => ({ name, port, release: '1.0.0' });
  const isFree = (port: number) => !inUse.has(port) && !inUse.has(inspectPortOf(of(port)));
  let free = 8081;
  while (!isFree(free)) free += 1;

  if (!text) throw new Error(`PORT is missing, and ${free} is free: make service NAME=${name} PORT=${free}`);
  const port = Number(text);
  const maxPort = 65_535 - inspectPortOf(of(0));
  if (!/^[1-9]\d*$/.test(text) || port < 1024 || port > maxPort) {
    throw new Error(`PORT must be a whole number from 1024 to ${maxPort}, not ${JSON.stringify(text)}`);
  }
  if (inUse.has(port)) throw new Error(`PORT ${port} is ${inUse.get(port)}: ${free} is free`);
  const inspectPort = inspectPortOf(of(port));
  if (inUse.has(inspectPort)) {
    throw new Error(
      `PORT ${port} has its inspector at ${inspectPort}, which is ${inUse.get(inspectPort)}: ${free} is free`,
    );
  }
  return of(port);
}

/** Checks the name of a group of the identity provider; the prefix `system:` is Kubernetes' own. */
function checkTeam(team: string): string {
  if (/^[a-z][\w.:@/-]{0,127}$/i.test(team) && !team.startsWith('system:') && isText(team)) return team;
  throw new Error(
    `TEAM must be the name of a group, at most 128 letters, digits and _.:@/-, that starts with a letter and not with ` +
      `system:, and that YAML reads as text, not ${JSON.stringify(team)}`,
  );
}

/** The text of each file of the service, by its path in the service's folder. */
function filesOf({ name, port }: Service, team: string): Map<string, string> {
  const files = fs
    .readdirSync(at(template), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && !entry.name.startsWith('.'))
    .map((entry) => path.join(entry.parentPath, entry.name));
  const values: Record<string, string> = {
    'new-service-team': team,
    'new-service': name,
    8080: String(port),
  };
  const made = files.map((file): [string, string] => [
    path.relative(at(template), file),
    fs.readFileSync(file, 'utf8').replaceAll(/new-service(-team)?|8080/g, (each) => values[each]!),
  ]);
  const { dependencies, ...names } = packageOf(name);
  const about = { private: true, description: 'Keeps notes', type: 'module' };
  return new Map([...made, ['package.json', toJson({ ...names, ...about, dependencies })]]);
}

/** The service's package. It has the versions of the chassis, so there is nothing to install. */
function packageOf(name: string) {
  const { name: chassis, version, dependencies } = JSON.parse(read('libraries/chassis/package.json'));
  const { express, zod } = dependencies;
  return { name: `@payloop/${name}`, version: '1.0.0', dependencies: { [chassis]: version, express, zod } };
}

const toJson = (value: object) => `${JSON.stringify(value, null, 2)}\n`;

/** The lockfile as npm 12 writes it. npm 9 to 11.3 would also drop the `libc` of each package. */
function lockfileWith(name: string): string {
  const lock = JSON.parse(read(lockfile));
  const folder = `services/${name}`;
  const packages = Object.entries({
    ...lock.packages,
    [`node_modules/@payloop/${name}`]: { resolved: folder, link: true },
    [folder]: packageOf(name),
  });
  packages.sort(([a], [b]) => a.localeCompare(b, 'en'));
  return toJson({ ...lock, packages: Object.fromEntries(packages) });
}

/** Returns a list with a line added after those of the other services. */
function withLine(file: string, line: string): string {
  const lines = read(file).split('\n');
  const last = lines.findLastIndex((each) => /^resources:$|^ +- [./]+\/services\//.test(each));
  if (last === -1) throw new Error(`${file} has no list of resources`);
  return lines.toSpliced(last + 1, 0, line).join('\n');
}

function write(service: Service, team: string): void {
  const { name } = service;
  const folder = at('services', name);
  const link = at('node_modules/@payloop', name);
  const files = filesOf(service, team);
  const edits = Object.entries(lists).map(([file, line]) => [file, withLine(file, line(name))] as const);
  edits.push([lockfile, lockfileWith(name)]);
  const before = edits.map(([file]) => [file, read(file)] as const);

  fs.mkdirSync(folder);
  try {
    for (const [file, text] of files) {
      fs.mkdirSync(path.dirname(path.join(folder, file)), { recursive: true });
      fs.writeFileSync(path.join(folder, file), text);
    }
    for (const [file, text] of edits) fs.writeFileSync(at(file), text);
    // Does the same as npm ci, which takes a minute.
    fs.rmSync(link, { force: true });
    fs.symlinkSync(`../../services/${name}`, link);
    fs.copyFileSync(at(lockfile), at(installed));
  } catch (error) {
    for (const [file, text] of before) fs.writeFileSync(at(file), text);
    for (const made of [folder, link]) fs.rmSync(made, { recursive: true, force: true });
    throw error;
  }
}

function main({ NAME, PORT, TEAM }: NodeJS.ProcessEnv): void {
  const service = checkPort(PORT, checkName(NAME));
  const { name, port } = service;
  const team = checkTeam(TEAM || `${name}-team`);
  write(service, team);
  console.log(`${name} is in services/${name}, and has a line in ${Object.keys(lists).join(' and ')}.
  Run it        make up serves it too; without a cluster it is at http://127.0.0.1:${port}/notes
  Change it     services/${name}/src/service.ts has its endpoints and its table; make test runs its test
  Read on       docs/adding-a-service.md: calls between services, variables, its team
  Remove it     rm -r services/${name}, remove both lines, and run npm install`);
}

try {
  main(process.env);
} catch (error) {
  console.error(`make service: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
