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

/** Returns the reason why this machine cannot simulate a lost network; undefined if it can. */
export async function whyNotOffline(): Promise<string | undefined> {
  if (process.platform !== 'linux') return 'network namespaces need Linux';
  if (process.getuid?.() !== 0) return 'only root may create a network namespace';
  for (const tool of ['unshare', 'nsenter', 'ip']) {
    const found = await run('sh', ['-c', `command -v ${tool}`]).catch(() => undefined);
    if (!found) return `${tool} is missing`;
  }
  return undefined;
}

/** A network namespace that has only loopback, for the processes that a test starts. */
export class Offline {
  readonly #holder: ChildProcess;
  readonly #folder: string;
  readonly #forwarders: ChildProcess[] = [];
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

  /** Returns the program and the arguments that run a command in the namespace. */
  command(...command: string[]): [string, ...string[]] {
    return ['nsenter', `--net=/proc/${this.#holder.pid}/ns/net`, '--', ...command];
  }

  /** Runs a command in the namespace and returns its output. @throws {Error} with the message if it fails */
  async run(...command: string[]): Promise<string> {
    const [program, ...args] = this.command(...command);
    return (await run(program, args)).stdout;
  }

  /** Forwards a loopback port of the namespace to the same port of the machine, where the cluster has its ports. */
  async admit(port: number): Promise<void> {
    const socket = join(this.#folder, `${port}`);
    this.#servers.push(await relay(socket, `${port}`));
    const script = join(import.meta.dirname, 'relay.ts');
    const [program, ...args] = this.command(process.execPath, script, `${port}`, socket);
    const forwarder = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    await once(forwarder.stdout, 'data');
    this.#forwarders.push(forwarder);
  }

  /** Frees the admitted ports of the namespace. */
  async dismiss(): Promise<void> {
    for (const server of this.#servers.splice(0)) server.close();
    for (const forwarder of this.#forwarders.splice(0)) {
      forwarder.kill();
      await once(forwarder, 'exit');
    }
  }

  async end(): Promise<void> {
    await this.dismiss();
    this.#holder.kill();
    await rm(this.#folder, { recursive: true });
  }
}

/** Cuts the cluster's node off from other networks. @returns a function that restores its route */
export async function cutOff(): Promise<() => Promise<void>> {
  const ip = async (...args: string[]) =>
    (await run('docker', ['exec', nodeContainer, 'ip', ...args])).stdout;
  const route = (await ip('route', 'show', 'default')).trim();
  // The route leads to an unused address of Docker's network. With no route, pods could not reach their Services.
  const deadEnd = route.replace(/via (\d+\.\d+)\.\S+/, 'via $1.255.254');
  await ip('route', 'replace', ...deadEnd.split(/\s+/));
  return async () => void (await ip('route', 'replace', ...route.split(/\s+/)));
}
