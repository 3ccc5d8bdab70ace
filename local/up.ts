// The services and their test as processes of this machine, on a Postgres from npm; `make up` runs it, and `make
// debug` with --debug, which opens their inspectors; --overlay=flaky sets what that overlay does.
import * as fs from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { styleText } from 'node:util';
import { watchForRestart } from './changes.ts';
import { endGroup, startGroup, type Command, type Group } from './groups.ts';
import { createOutput, readable, wantsColour } from './output.ts';
import { OverlayError, readAddresses, readOverlay } from './overlay.ts';
import { whyTaken } from './ports.ts';
import { PostgresError, startPostgres, type Postgres } from './postgres.ts';
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
  /** Where debuggers are let in, if they are. */
  inspectPort: number | undefined;
  env: NodeJS.ProcessEnv;
}

/** Thrown with a message that is meant for the user as it is. */
class UpError extends Error {}

const root = path.resolve(import.meta.dirname, '..');
const state = path.join(root, '.payloop');
const paymentTest = 'local/payment-test.ts';
const reload = 'libraries/chassis/dev/serve.ts';

/** The service that people and the payment test talk to. */
const front = 'invoice-app';
const listed = readList();
const speakers = ['up', ...listed.map(({ name }) => name), 'test'];
const colour = wantsColour(process.stdout, process.env);
const output = createOutput(speakers, { write: (text) => process.stdout.write(text), colour });
/** Whoever sets LOG_LEVEL wants to see every line; else a save that is served and passes the test is one. */
const isVerbose = Boolean(process.env.LOG_LEVEL);
/** A process that ends sooner after its start than this, in milliseconds, would only do so again. */
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
    // Data of its own: a database that is there already is not filled anew, and dev's should stay as they are.
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
  await endLeftovers();
  await checkPorts(ports);

  const postgres = await startPostgres({
    folder: path.join(state, 'postgres'),
    port: postgresPort,
    databases: services.map(({ database }) => database),
  });
  say(`Postgres on 127.0.0.1:${postgres.port}, its data in ${postgres.home}`);
  if (overlay !== 'dev') {
    const variables = Object.entries(Object.assign({}, ...Object.values(environments)));
    const set = variables.map(([name, value]) => `${name}=${String(value)}`).join(' ');
    say(`${overlay}: ${set}, with databases of its own: make up goes on with those of dev`);
  }
  const groups: Group[] = [];
  const { promise: end, resolve: finish } = Promise.withResolvers<string | undefined>();
  let restarts = Promise.resolve();
  let isEnding = false;
  const keepRunning = async (command: Command): Promise<void> => {
    const startedAt = performance.now();
    const group = await startGroup(command, createListener(command.name));
    groups.push(group);
    await remember(groups);
    const restart = async (how: string) => {
      if (isEnding) return;
      if (performance.now() - startedAt < tooSoon) return finish(`${group.name} ended by itself: ${how}`);
      say(`${group.name} ended by itself (${how}) and is started again`);
      await endGroup(group.pid);
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
    void postgres.ended.then(() => finish(`Postgres ended by itself, see ${postgres.log}`));
    stop.onAgain = () => {
      for (const { pid } of groups) signal(-pid, 'SIGKILL');
    };
    // In any order: each waits for its database, and calls the others only when it is asked.
    for (const service of services) {
      if (!stop.requested) await keepRunning(serve(service, postgres));
    }
    const url = `http://localhost:${services.find(({ name }) => name === front)!.localPort}`;
    // A test that came before the migrations would fail.
    await Promise.race([announce(services, url, start), end]);
    if (!stop.requested) await keepRunning(test(url, ports));
    watchForRestart(root, say);
    const why = await end;
    if (why !== undefined) throw new UpError(why);
  } finally {
    say('ending');
    isEnding = true;
    await restarts;
    await endAll(groups, postgres);
  }
}

/** Ends this process where it cannot: each line that it says is as wide as the longest name. */
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
    throw new UpError(`${twice[0]} is ${twice[1]}, which another part uses already: set it to a free port`);
  // Postgres looks at its own port when it has ended what an earlier run left there.
  const asked = entries.filter(([variable]) => variable !== 'POSTGRES_PORT');
  const answers = await Promise.all(asked.map(([variable, port]) => whyTaken(variable, port)));
  const taken = answers.filter((answer) => answer !== undefined);
  if (taken.length === 0) return;
  // Whatever has one has the others too, most often another `make up`: all at once, not one a try.
  const postgres = await whyTaken('POSTGRES_PORT', ports.POSTGRES_PORT!);
  throw new UpError([...taken, postgres].filter((answer) => answer !== undefined).join('\n'));
}

/** Postgres' data and what runs are kept in the checkout. */
async function checkFolder(): Promise<void> {
  try {
    await fs.mkdir(state, { recursive: true });
    // Asking is not enough: root may do everything but on a file system that is read-only.
    await fs.rm(await fs.mkdtemp(path.join(state, 'probe-')), { recursive: true });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new UpError(
      `${state} cannot be written to (${code}), and make up keeps its data there: use a checkout that is yours to change`,
    );
  }
}

function serve({ name, database, localPort, inspectPort, env }: Service, postgres: Postgres): Command {
  // The user's would contradict what is set here.
  const { DATABASE_URL_FILE: _file, PAYMENT_PROVIDER_ENDPOINT: _endpoint, ...inherited } = process.env;
  return {
    name,
    file: process.execPath,
    args: [reload, name],
    env: {
      ...inherited,
      // Without a line for each request.
      LOG_LEVEL: process.env.LOG_LEVEL || 'warn',
      ENVIRONMENT: 'dev',
      ALLOW_RESET: 'true',
      // Not for the whole network: the service pays whoever asks.
      HOST: '127.0.0.1',
      PORT: String(localPort),
      // Any free one, said in the log: nothing scrapes here.
      METRICS_PORT: '0',
      // Empty, not absent: one of the user's shell would be the same for all.
      INSPECT_PORT: String(inspectPort ?? ''),
      DATABASE_URL: postgres.url(database),
      ...env,
    },
    cwd: root,
  };
}

/** @param ports by the variables that tell test.sh of them */
function test(url: string, ports: Record<string, number>): Command {
  const variables = Object.entries(ports).map(([variable, port]) => [variable, String(port)]);
  const env = { ...process.env, ...Object.fromEntries(variables) };
  return { name: 'test', file: process.execPath, args: [paymentTest, url], env, cwd: root };
}

function createListener(name: string): (line: string) => void {
  const sayAs = output(name);
  return (line) => {
    // The test says whether what a save brought works.
    if (!isVerbose && /^\[reload\] \S+ runs the new code /.test(line)) return;
    const text = readable(line);
    const hasFailed = /^(not ok|payment test failed)/.test(text) || / did not start \(/.test(text);
    sayAs(colour && hasFailed ? styleText('red', text, { validateStream: false }) : text);
  };
}

/** Says once where the services are, when all are ready. */
async function announce(services: Service[], url: string, start: number): Promise<void> {
  for (const { localPort } of services) {
    while (!(await isReady(localPort))) await delay(50);
  }
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  say(
    `serving ${url} after ${seconds} s; every save restarts what it touches and runs the test; Ctrl-C ends it`,
  );
  for (const { name, localPort, inspectPort } of services) {
    if (name !== front) say(`${name} is at http://127.0.0.1:${localPort}`);
    if (inspectPort !== undefined) say(`a debugger finds ${name} at 127.0.0.1:${inspectPort}`);
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
  /** Called when the user asks once more. */
  onAgain: () => void;
}

/** Ctrl-C, SIGTERM, or nobody left who reads what is said. */
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
  // A closed terminal or pipe; unhandled, it would end this process and leave the others.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', requestOnce);
  if (process.stdout.isTTY) onTerminalGone(requestOnce);
  return stop;
}

/** SIGHUP is for the first process of a terminal; where that is make, it keeps it to itself. */
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

async function endAll(groups: Group[], postgres: Postgres): Promise<void> {
  const ended = await Promise.all(groups.map(({ pid }) => endGroup(pid)));
  await postgres.stop();
  const left = groups.filter((_, index) => ended[index] === false);
  if (left.length > 0)
    throw new UpError(`could not end ${left.map(({ name, pid }) => `${name} (${pid})`).join()}`);
  await fs.rm(stateFile(), { force: true });
}

/** What runs, for the next `make up` in case this one is killed and cannot end it. */
async function remember(groups: Group[]): Promise<void> {
  const known = { owner: process.pid, groups: groups.map(({ pid }) => pid) };
  await fs.writeFile(stateFile(), JSON.stringify(known));
}

async function endLeftovers(): Promise<void> {
  const text = await fs.readFile(stateFile(), 'utf8').catch(() => undefined);
  if (text === undefined) return;
  const known: { owner: number; groups: number[] } = JSON.parse(text);
  await Promise.all(known.groups.map((pid) => endLeftover(pid, known.owner)));
  await fs.rm(stateFile(), { force: true });
}

async function endLeftover(pid: number, owner: number): Promise<void> {
  const found = await processOf(pid);
  // Its number may be somebody else's by now.
  if (![paymentTest, reload].some((file) => found?.command.includes(file))) return;
  if (found?.parent === owner) throw new UpError(`make up runs here already, as process ${owner}`);
  say(`ending what an earlier run left behind (pid ${pid})`);
  await endGroup(pid);
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
