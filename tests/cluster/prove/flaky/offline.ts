import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import type { Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { nodeContainer } from '../../cluster.ts';
import { relay } from './relay.ts';

const run = promisify(execFile);

/** Why a network cannot be taken away on this machine; undefined where it can. */
export async function whyNotOffline(): Promise<string | undefined> {
  if (process.platform !== 'linux') return 'network namespaces are of Linux';
  if (process.getuid?.() !== 0) return 'only root may make a network namespace';
  for (const tool of ['unshare', 'nsenter', 'ip']) {
    const there = await run('sh', ['-c', `command -v ${tool}`]).catch(() => undefined);
    if (!there) return `${tool} is missing`;
  }
  return undefined;
}

/** A machine's loopback and nothing else: a network namespace for the processes that a test starts. */
export class Offline {
  readonly #holder: ChildProcess;
  readonly #folder: string;
  readonly #processes: ChildProcess[] = [];
  readonly #servers: Server[] = [];

  private constructor(holder: ChildProcess, folder: string) {
    this.#holder = holder;
    this.#folder = folder;
  }

  static async start(): Promise<Offline> {
    const folder = await mkdtemp(join(tmpdir(), 'payloop-offline-'));
    const script = 'ip link set lo up && echo up && exec sleep infinity';
    const holder = spawn('unshare', ['--net', 'sh', '-c', script], { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(holder.stdout, 'data');
    return new Offline(holder, folder);
  }

  /** What runs a command in it, as a program and its arguments. */
  command(...command: string[]): [string, ...string[]] {
    return ['nsenter', `--net=/proc/${this.#holder.pid}/ns/net`, '--', ...command];
  }

  /** Runs a command in it, and gives what it wrote. @throws {Error} with the message when it fails */
  async run(...command: string[]): Promise<string> {
    const [program, ...args] = this.command(...command);
    return (await run(program, args)).stdout;
  }

  /** Makes a port of the machine's loopback one of this one too, as a cluster on this machine is reached by them. */
  async admit(port: number): Promise<void> {
    const socket = join(this.#folder, `${port}`);
    this.#servers.push(await relay(socket, `${port}`));
    const script = join(import.meta.dirname, 'relay.ts');
    const [program, ...args] = this.command(process.execPath, script, `${port}`, socket);
    const passer = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(passer.stdout, 'data');
    this.#processes.push(passer);
  }

  async end(): Promise<void> {
    for (const each of [...this.#processes, this.#holder]) each.kill();
    for (const server of this.#servers) server.close();
    await rm(this.#folder, { recursive: true });
  }
}

/** Takes the cluster's node its way out. @returns what gives it back */
export async function cutOff(): Promise<() => Promise<void>> {
  const ip = async (...args: string[]) =>
    (await run('docker', ['exec', nodeContainer, 'ip', ...args])).stdout;
  const route = (await ip('route', 'show', 'default')).trim();
  // To an address of Docker's network that nobody has; without a route pods do not reach their Services either.
  const nobody = route.replace(/via (\d+\.\d+)\.\S+/, 'via $1.255.254');
  await ip('route', 'replace', ...nobody.split(/\s+/));
  return async () => void (await ip('route', 'replace', ...route.split(/\s+/)));
}
