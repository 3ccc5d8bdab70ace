// Runs the services and their test as processes of this machine, on a Postgres from npm, for `make up`. `make debug`
// adds --debug, which opens the inspectors. --overlay=flaky sets the variables of that overlay.
import * as fs from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { styleText } from 'node:util';
import { watchForRestart } from './changes.ts';
import { stopGroup, startGroup, type Command, type Group } from './groups.ts';
import { createOutput, readable, wantsColour } from './output.ts';
import { OverlayError, readAddresses, readOverlay } from './overlay.ts';
import { whyTaken } from './ports.ts';
import { PostgresError } from './postgres-error.ts';
import { startPostgres, type Postgres } from './postgres.ts';
import { processOf, signal } from './processes.ts';
import {
  databaseOf,
  inspectPortOf,
  readServices,
  variablePrefix,
  type Service as Listed,
} from '../scripts/services.ts';

interface Service extends Pick<Listed, 'name' | 'port'> {
  database: string;
  localPort: number;
  /** The port of the inspector, if it is open. */
  inspectPort: number | undefined;
  env: NodeJS.ProcessEnv;
}

/** An error with a message for the user, printed without a stack. */
class UpError extends Error {}

const root = path.resolve(import.meta.dirname, '..');
const state = path.join(root, '.payloop');
const paymentTest = 'local/payment-test.ts';
const reload = 'libraries/chassis/dev/serve.ts';

/** The service that people and the payment test call. */
const entryService = 'invoice-app';
const listed = readList();
const labels = ['up', ...listed.map(({ name }) => name), 'test'];
const colour = wantsColour(process.stdout, process.env);
const output = createOutput(labels, { write: (text) => process.stdout.write(text), colour });
/** With LOG_LEVEL set every line is printed. Otherwise a save that is served and passes the test prints one line. */
const isVerbose = Boolean(process.env.LOG_LEVEL);
/** A process that exits sooner than this after its start, in milliseconds, is not restarted: it would exit again. */
const tooSoon = 5_000;
const say = output('up');

async function main(): Promise<void> {
  const overlay = process.argv.findLast((each) => each.startsWith('--overlay='))?.slice(10) ?? 'dev';
  const environments = readOverlay(overlay);
  const isDebug = process.argv.includes('--debug');
  const ports: Record<string, number> = {};
  const portOf = (variable: string, fallback: number) => (ports[variable] = portFrom(variable, fallback));
  const services = listed.map((service): Service => ({
    name: service.name,
    port: service.port,
    // A separate database per overlay: an existing database is not seeded again, and dev's data should not change.
    database: overlay === 'dev' ? databaseOf(service) : `${databaseOf(service)}_${overlay}`,
    localPort: portOf(`${variablePrefix(service)}_PORT`, service.port),
    inspectPort: isDebug
      ? portOf(`${variablePrefix(service)}_INSPECT_PORT`, inspectPortOf(service))
      : undefined,
    env: {},
  }));
  const postgresPort = portOf('POSTGRES_PORT', 25432);
  for (const { name, env } of services) Object.assign(env, readAddresses(name, services), environments[name]);
  const start = performance.now();
  const stop = stopRequest();
  await checkFolder();
  await stopLeftovers();
  await checkPorts(ports);

  const postgres = await startPostgres({
    folder: path.join(state, 'postgres'),
    port: postgresPort,
    databases: services.map(({ database }) => database),
  });
  say(`Postgres is at 127.0.0.1:${postgres.port}, its data in ${postgres.home}`);
  if (overlay !== 'dev') {
    const variables = Object.entries(Object.assign({}, ...Object.values(environments)));
    const set = variables.map(([name, value]) => `${name}=${String(value)}`).join(' ');
    say(`${overlay}: ${set}; it has separate databases, so dev keeps its data`);
  }
  const groups: Group[] = [];
  const { promise: end, resolve: finish } = Promise.withResolvers<string | undefined>();
  let restarts = Promise.resolve();
  let isStopping = false;
  const keepRunning = async (command: Command): Promise<void> => {
    const startedAt = performance.now();
    const group = await startGroup(command, createListener(command.name));
    groups.push(group);
    await remember(groups);
    const restart = async (how: string) => {
      if (isStopping) return;
      if (performance.now() - startedAt < tooSoon) return finish(`${group.name} exited at its start: ${how}`);
      say(`${group.name} exited (${how}) and is restarted`);
      await stopGroup(group.pid);
      groups.splice(groups.indexOf(group), 1);
      await keepRunning(command);
    };
    void group.ended.then(
      (how) =>
        (restarts = restarts.then(() => restart(how)).catch((error: unknown) => finish(String(error)))),
    );
  };
  try {
    void stop.promise.then(finish);
    void postgres.ended.then(() => finish(`Postgres exited: see ${postgres.log}`));
    stop.onAgain = () => {
      for (const { pid } of groups) signal(-pid, 'SIGKILL');
    };
    // In any order: each service waits for its database, and calls the others only when it gets a request.
    for (const service of services) {
      if (!stop.requested) await keepRunning(serve(service, postgres));
    }
    const url = `http://localhost:${services.find(({ name }) => name === entryService)!.localPort}`;
    // Before the migrations the test would fail.
    await Promise.race([announce(services, url, start), end]);
    if (!stop.requested) await keepRunning(test(url, ports));
    watchForRestart(root, say);
    const why = await end;
    if (why !== undefined) throw new UpError(why);
  } finally {
    say('stopping');
    isStopping = true;
    await restarts;
    await stopAll(groups, postgres);
  }
}

/** Exits if the list cannot be read. Prints the reason itself, because `say` needs the names in the list. */
function readList(): Listed[] {
  try {
    return readServices();
  } catch (error) {
    process.stdout.write(`make up: ${(error as Error).message}\n`);
    process.exit(1);
  }
}

function portFrom(variable: string, fallback: number): number {
  const text = process.env[variable] || String(fallback);
  const port = Number(text);
  if (Number.isInteger(port) && port >= 1 && port <= 65_535) return port;
  throw new UpError(`${variable} must be a port, 1 to 65535, not '${text}'`);
}

async function checkPorts(ports: Record<string, number>): Promise<void> {
  const entries = Object.entries(ports);
  const twice = entries.find(([, port], index) =>
    entries.some(([, other], at) => at < index && other === port),
  );
  if (twice)
    throw new UpError(`${twice[0]} is ${twice[1]}, which another setting uses too: set it to a free port`);
  // startPostgres checks its own port, after it has stopped the Postgres of an earlier run.
  const checked = entries.filter(([variable]) => variable !== 'POSTGRES_PORT');
  const answers = await Promise.all(checked.map(([variable, port]) => whyTaken(variable, port)));
  const taken = answers.filter((answer) => answer !== undefined);
  if (taken.length === 0) return;
  // Reports all ports at once: the process that has one, usually another `make up`, has the others too.
  const postgres = await whyTaken('POSTGRES_PORT', ports.POSTGRES_PORT!);
  throw new UpError([...taken, postgres].filter((answer) => answer !== undefined).join('\n'));
}

/** Checks that the state folder can be written to: Postgres' data and the list of running processes are in it. */
async function checkFolder(): Promise<void> {
  try {
    await fs.mkdir(state, { recursive: true });
    // Checking permissions is not enough: they do not stop root, but a read-only file system does.
    await fs.rm(await fs.mkdtemp(path.join(state, 'probe-')), { recursive: true });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new UpError(
      `${state} cannot be written to (${code}), and make up keeps its data there: use a checkout that you can write to`,
    );
  }
}

function serve({ name, database, localPort, inspectPort, env }: Service, postgres: Postgres): Command {
  // The user's values would contradict the variables below.
  const { DATABASE_URL_FILE: _file, PAYMENT_PROVIDER_ENDPOINT: _endpoint, ...inherited } = process.env;
  return {
    name,
    file: process.execPath,
    args: [reload, name],
    env: {
      ...inherited,
      // No line for each request.
      LOG_LEVEL: process.env.LOG_LEVEL || 'warn',
      ENVIRONMENT: 'dev',
      ALLOW_RESET: 'true',
      // Not reachable from the network: the service pays for any caller.
      HOST: '127.0.0.1',
      PORT: String(localPort),
      // Any free port, which nothing prints: no Prometheus scrapes a local process.
      METRICS_PORT: '0',
      // Empty, not absent: a value from the user's shell would give every service the same port.
      INSPECT_PORT: String(inspectPort ?? ''),
      DATABASE_URL: postgres.url(database),
      ...env,
    },
    cwd: root,
  };
}

/** @param ports by the variables that pass them to test.sh */
function test(url: string, ports: Record<string, number>): Command {
  const variables = Object.entries(ports).map(([variable, port]) => [variable, String(port)]);
  const env = { ...process.env, ...Object.fromEntries(variables) };
  return { name: 'test', file: process.execPath, args: [paymentTest, url], env, cwd: root };
}

function createListener(name: string): (line: string) => void {
  const sayAs = output(name);
  return (line) => {
    // The test reports whether the saved code works.
    if (!isVerbose && /^\[reload\] \S+ runs the new code /.test(line)) return;
    const text = readable(line);
    const hasFailed = /^(not ok|payment test failed)/.test(text) || / did not start \(/.test(text);
    sayAs(colour && hasFailed ? styleText('red', text, { validateStream: false }) : text);
  };
}

/** Prints the addresses of the services once all are ready. */
async function announce(services: Service[], url: string, start: number): Promise<void> {
  for (const { localPort } of services) {
    while (!(await isReady(localPort))) await delay(50);
  }
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  say(
    `serving ${url} after ${seconds} s; every save reloads the services it changes and runs the test; Ctrl-C stops it`,
  );
  for (const { name, localPort, inspectPort } of services) {
    if (name !== entryService) say(`${name} is at http://127.0.0.1:${localPort}`);
    if (inspectPort !== undefined) say(`the inspector of ${name} is at 127.0.0.1:${inspectPort}`);
  }
}

async function isReady(port: number): Promise<boolean> {
  try {
    const response = await fetch(`http://127.0.0.1:${port}/readyz`, { signal: AbortSignal.timeout(1_000) });
    return response.ok;
  } catch {
    return false;
  }
}

interface Stop {
  requested: boolean;
  promise: Promise<undefined>;
  /** Called on each further request to stop. */
  onAgain: () => void;
}

/** Returns the user's request to stop: Ctrl-C, SIGTERM, SIGHUP, or an output that has lost its reader. */
function stopRequest(): Stop {
  const { promise, resolve } = Promise.withResolvers<undefined>();
  const stop: Stop = { requested: false, promise, onAgain: () => undefined };
  const request = () => {
    if (stop.requested) stop.onAgain();
    stop.requested = true;
    resolve(undefined);
  };
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, request);
  const requestOnce = () => {
    if (!stop.requested) request();
  };
  // A closed terminal or pipe: unhandled, the error would crash this process and leave the others running.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', requestOnce);
  if (process.stdout.isTTY) onTerminalGone(requestOnce);
  return stop;
}

/** Polls the terminal: its SIGHUP goes to the first process, and if that is make, make does not pass it on. */
function onTerminalGone(then: () => void): void {
  const timer = setInterval(() => {
    fs.open('/dev/tty').then(
      (terminal) => terminal.close(),
      () => {
        clearInterval(timer);
        then();
      },
    );
  }, 1_000);
}

async function stopAll(groups: Group[], postgres: Postgres): Promise<void> {
  const ended = await Promise.all(groups.map(({ pid }) => stopGroup(pid)));
  await postgres.stop();
  const left = groups.filter((_, index) => ended[index] === false);
  if (left.length > 0)
    throw new UpError(`could not stop ${left.map(({ name, pid }) => `${name} (pid ${pid})`).join(', ')}`);
  await fs.rm(stateFile(), { force: true });
}

/** Saves the pids of the groups, so that the next `make up` can stop them if this one is killed. */
async function remember(groups: Group[]): Promise<void> {
  const known = { owner: process.pid, groups: groups.map(({ pid }) => pid) };
  await fs.writeFile(stateFile(), JSON.stringify(known));
}

async function stopLeftovers(): Promise<void> {
  const text = await fs.readFile(stateFile(), 'utf8').catch(() => undefined);
  if (text === undefined) return;
  const known = parseState(text);
  await Promise.all(known.groups.map((pid) => stopLeftover(pid, known.owner)));
  await fs.rm(stateFile(), { force: true });
}

/** @throws {UpError} when the text is not what `remember` writes, as after a power loss */
function parseState(text: string): { owner: number; groups: number[] } {
  try {
    const { owner, groups } = JSON.parse(text);
    if ([owner, ...groups].every(Number.isInteger)) return { owner, groups };
  } catch {
    // Reported below.
  }
  throw new UpError(
    `${stateFile()} is damaged: stop what an earlier make up left running here, and delete it`,
  );
}

async function stopLeftover(pid: number, owner: number): Promise<void> {
  const found = await processOf(pid);
  // Another process may have this pid by now.
  if (![paymentTest, reload].some((file) => found?.command.includes(file))) return;
  if (found?.parent === owner) throw new UpError(`make up is already running here, as process ${owner}`);
  say(`stopping a process that an earlier run left behind (pid ${pid})`);
  await stopGroup(pid);
}

function stateFile(): string {
  return path.join(state, 'processes.json');
}

try {
  await main();
  process.exit();
} catch (error) {
  const expected =
    error instanceof UpError || error instanceof PostgresError || error instanceof OverlayError;
  say(expected ? error.message : String(error instanceof Error ? error.stack : error));
  process.exit(1);
}
