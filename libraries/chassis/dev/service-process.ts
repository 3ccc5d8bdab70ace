import { fork, type ChildProcess, type StdioOptions } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { compileCache } from './compile-cache.ts';

/**
 * How long requests that were sent to a process are waited for before it is told to end, in milliseconds. A
 * connection that it has not accepted by then would be reset; what it has accepted it answers by itself.
 */
const holdTimeout = 2_000;
/** How long a process may take to end after SIGTERM, in milliseconds: longer than the chassis gives itself. */
const endTimeout = 35_000;
/** How long the last words of a process that has ended are waited for, in milliseconds. */
const lastWordsTimeout = 100;

export interface ServiceProcessOptions {
  /** The folder that holds `services`. */
  root: string;
  service: string;
  /** Whether it opens an inspector, on a free port of loopback. */
  inspect: boolean;
}

/** What a process says: child.ts of its inspector, the chassis's run.ts of the rest. */
type Message = { inspector: string } | { port: number; metricsPort: number } | { ready: true };

/** One process of a service: it loads packages and links sources, and once told to, runs the sources as they are. */
export class ServiceProcess {
  readonly #child: ChildProcess;
  readonly #stopping = new AbortController();
  #holds = 0;
  /** What it wrote to standard error before `reveal`; undefined after. */
  #held: Buffer[] | undefined = [];
  readonly #released = new EventEmitter();
  /** The hash of the sources that it was told to load. */
  source: string | undefined;
  /** When it was told to load them, in milliseconds of `performance.now()`. */
  loadedAt = 0;
  /** Where it answers, once it listens. */
  port = 0;
  metricsPort = 0;
  inspectorPort = 0;
  /** Resolves with how it ended. */
  readonly ended: Promise<string>;
  /** Resolve when it listens, and when it is ready to serve; never, where it ends before. */
  readonly listening: Promise<void>;
  readonly ready: Promise<void>;

  constructor({ root, service, inspect }: ServiceProcessOptions) {
    const flags = ['--disable-warning=ExperimentalWarning'];
    if (inspect) flags.push('--inspect=127.0.0.1:0', '--inspect-publish-uid=http');
    // What the last processes compiled and stripped of their types is not done again.
    const env = { ...process.env, PORT: '0', METRICS_PORT: '0', NODE_COMPILE_CACHE: compileCache(root) };
    const file = join(import.meta.dirname, 'child.ts');
    const stdio: StdioOptions = ['ignore', 1, 'pipe', 'ipc'];
    this.#child = fork(file, [service], { cwd: root, env, execArgv: flags, stdio });
    this.#child.stderr?.on('data', (words: Buffer) => {
      if (this.#held === undefined) process.stderr.write(words);
      else this.#held.push(words);
    });
    this.ended = new Promise((resolve) => {
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
    this.#send('load');
  }

  /** Tells it which code did not start since, for `GET /version`; undefined once none is broken. */
  tellFailed(source: string | undefined): void {
    this.#send({ failed: source ?? null });
  }

  /** Passes on what it writes to standard error, from its start: until then nobody knows whether that counts. */
  reveal(): void {
    for (const words of this.#held ?? []) process.stderr.write(words);
    this.#held = undefined;
  }

  /** Resolves when a process that has ended was read to its last words. */
  async lastWords(): Promise<void> {
    const { stderr } = this.#child;
    if (stderr && !stderr.readableEnded) await Promise.race([once(stderr, 'end'), sleep(lastWordsTimeout)]);
  }

  #send(message: 'load' | { failed: string | null }): void {
    // A process that has ended says so by `ended`.
    if (this.#child.connected) this.#child.send(message, () => {});
  }

  /** Aborted once it is to end. */
  get stopping(): AbortSignal {
    return this.#stopping.signal;
  }

  /** Whether its `/readyz` says so now. */
  async isReady(): Promise<boolean> {
    try {
      const url = `http://127.0.0.1:${this.port}/readyz`;
      return (await fetch(url, { signal: AbortSignal.timeout(2_000) })).ok;
    } catch {
      return false;
    }
  }

  /** Keeps it from being told to end, for a while, until what this gives is called. */
  hold(): () => void {
    this.#holds += 1;
    return () => {
      this.#holds -= 1;
      if (this.#holds === 0) this.#released.emit('all');
    };
  }

  /** Ends it as Kubernetes would: requests under way get their answers. */
  async stop(): Promise<void> {
    // First a debugger is cut off, and with it goes its pause: a process does not end before.
    this.#stopping.abort();
    if (this.#holds > 0) {
      const signal = AbortSignal.timeout(holdTimeout);
      await Promise.race([once(this.#released, 'all', { signal }).catch(() => {}), this.ended]);
    }
    this.#child.kill();
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), endTimeout);
    await this.ended;
    clearTimeout(timer);
  }
}
