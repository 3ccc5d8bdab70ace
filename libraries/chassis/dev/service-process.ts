import { fork, type ChildProcess, type StdioOptions } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { compileCache } from './compile-cache.ts';

/**
 * How long SIGTERM is delayed for requests on their way to a process, in milliseconds. SIGTERM resets connections that
 * the process has not accepted yet. The process still answers requests on those that it has accepted.
 */
const holdTimeout = 2_000;
/** How long after SIGTERM a process is killed, in milliseconds: longer than the 33 s that the chassis allows itself. */
const killTimeout = 35_000;
/** How long to wait for the rest of standard error once a process has exited, in milliseconds. */
const stderrTimeout = 100;

export interface ServiceProcessOptions {
  /** The folder that holds `services`. */
  root: string;
  service: string;
  /** Whether the process opens an inspector, on a free loopback port. */
  inspect: boolean;
}

/** Tells a process to run the sources, which have this hash. */
export type Load = { source: string };

/** Messages from a process: child.ts reports the inspector, the chassis's run.ts the rest. */
type Message = { inspector: string } | { port: number; metricsPort: number } | { ready: true };

/** One process of a service. It loads packages and links sources. After `load` it runs the sources as they are then. */
export class ServiceProcess {
  readonly #child: ChildProcess;
  readonly #stopping = new AbortController();
  #holds = 0;
  /** The standard error of the process before `forwardStderr`; undefined after. */
  #heldStderr: Buffer[] | undefined = [];
  readonly #released = new EventEmitter();
  /** The hash of the sources passed to `load`. */
  source: string | undefined;
  /** The time of `load`, in milliseconds of `performance.now()`. */
  loadedAt = 0;
  /** The loopback ports of the process; 0 before it listens. */
  port = 0;
  metricsPort = 0;
  inspectorPort = 0;
  /** Resolves with the exit code, signal or error once the process has exited. */
  readonly exited: Promise<string>;
  /** Resolve once the process listens and once it is ready to serve; never if it exits before. */
  readonly listening: Promise<void>;
  readonly ready: Promise<void>;

  constructor({ root, service, inspect }: ServiceProcessOptions) {
    const flags = ['--disable-warning=ExperimentalWarning'];
    if (inspect) flags.push('--inspect=127.0.0.1:0', '--inspect-publish-uid=http');
    // The cache keeps what earlier processes have compiled, types stripped.
    const env = { ...process.env, PORT: '0', METRICS_PORT: '0', NODE_COMPILE_CACHE: compileCache(root) };
    const file = join(import.meta.dirname, 'child.ts');
    const stdio: StdioOptions = ['ignore', 1, 'pipe', 'ipc'];
    this.#child = fork(file, [service], { cwd: root, env, execArgv: flags, stdio });
    this.#child.stderr?.on('data', (chunk: Buffer) => {
      if (this.#heldStderr === undefined) process.stderr.write(chunk);
      else this.#heldStderr.push(chunk);
    });
    this.exited = new Promise((resolve) => {
      this.#child.on('exit', (code, signal) => resolve(signal ?? `exit code ${code}`));
      this.#child.on('error', (error) => resolve(error.message));
    });
    const listening = Promise.withResolvers<void>();
    const ready = Promise.withResolvers<void>();
    this.listening = listening.promise;
    this.ready = ready.promise;
    this.#child.on('message', (message: Message) => {
      if ('inspector' in message) this.inspectorPort = Number(new URL(message.inspector).port);
      if ('port' in message) {
        this.port = message.port;
        this.metricsPort = message.metricsPort;
        listening.resolve();
      }
      if ('ready' in message) ready.resolve();
    });
  }

  load(source: string): void {
    this.source = source;
    this.loadedAt = performance.now();
    this.#send({ source });
  }

  /** Tells the process, for `GET /version`, the hash of newer code that did not start; undefined if there is none. */
  tellFailed(source: string | undefined): void {
    this.#send({ failed: source ?? null });
  }

  /** Forwards standard error, from its start. It is held until this call: a discarded process must print nothing. */
  forwardStderr(): void {
    for (const chunk of this.#heldStderr ?? []) process.stderr.write(chunk);
    this.#heldStderr = undefined;
  }

  /** Resolves once all standard error of an exited process has been read, or after `stderrTimeout`. */
  async stderrEnd(): Promise<void> {
    const { stderr } = this.#child;
    if (stderr && !stderr.readableEnded) await Promise.race([once(stderr, 'end'), sleep(stderrTimeout)]);
  }

  #send(message: Load | { failed: string | null }): void {
    // A disconnected process has exited, which `exited` reports.
    if (this.#child.connected) this.#child.send(message, () => {});
  }

  /** Aborted once `stop` is called. */
  get stopping(): AbortSignal {
    return this.#stopping.signal;
  }

  /** Whether its `/readyz` reports ready. */
  async isReady(): Promise<boolean> {
    try {
      const url = `http://127.0.0.1:${this.port}/readyz`;
      return (await fetch(url, { signal: AbortSignal.timeout(2_000) })).ok;
    } catch {
      return false;
    }
  }

  /** Delays SIGTERM until the returned function is called, by at most `holdTimeout`. */
  hold(): () => void {
    this.#holds += 1;
    return () => {
      this.#holds -= 1;
      if (this.#holds === 0) this.#released.emit('all');
    };
  }

  /** Stops the process as Kubernetes would: requests in flight are answered. */
  async stop(): Promise<void> {
    // Disconnects a debugger first, which resumes the process: a paused one would not exit.
    this.#stopping.abort();
    if (this.#holds > 0) {
      const signal = AbortSignal.timeout(holdTimeout);
      await Promise.race([once(this.#released, 'all', { signal }).catch(() => {}), this.exited]);
    }
    this.#child.kill();
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), killTimeout);
    await this.exited;
    clearTimeout(timer);
  }
}
