import { spawn, type ChildProcess, type SpawnOptions } from 'node:child_process';
import * as fs from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { signal } from '../../local/processes.ts';

/** Runs a command in its own process group and collects its output. */
export class Running {
  readonly #child: ChildProcess;
  readonly #closed: Promise<number | null>;
  output = '';

  constructor(command: string, args: string[], options: SpawnOptions = {}) {
    this.#child = spawn(command, args, { ...options, detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
    for (const stream of [this.#child.stdout!, this.#child.stderr!]) {
      stream.setEncoding('utf8').on('data', (text: string) => (this.output += text));
    }
    this.#closed = new Promise((resolve) => {
      this.#child.once('close', resolve);
      this.#child.once('error', (error) => {
        this.output += error.message;
        resolve(null);
      });
    });
  }

  /**
   * Waits until the output matches.
   * @returns the time it took, in milliseconds
   * @throws {Error} with the whole output, after `bound` milliseconds or when the command exits without a match
   */
  async prints(pattern: RegExp, bound: number): Promise<number> {
    const start = performance.now();
    let closed = false;
    void this.#closed.then(() => (closed = true));
    while (!pattern.test(this.output)) {
      const ms = performance.now() - start;
      if (closed || ms > bound) {
        const why = closed ? 'the command exited' : `${bound} ms passed`;
        throw new Error(`${why} without output that matches ${String(pattern)}:\n${this.output}`);
      }
      await delay(20);
    }
    return performance.now() - start;
  }

  /** Signals the whole process group, as Ctrl-C in a terminal does. */
  signal(name: NodeJS.Signals): void {
    signal(-this.#child.pid!, name);
  }

  /** Waits for the exit code. It is null if a signal killed the command or it did not start. */
  ended(): Promise<number | null> {
    return this.#closed;
  }
}

/** Returns the command lines of processes that run in a folder or have it in their arguments; Linux only. */
export async function processesIn(folder: string): Promise<string[]> {
  const pids = (await fs.readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const found = await Promise.all(
    pids.map(async (pid) => {
      const cwd = await fs.readlink(path.join('/proc', pid, 'cwd')).catch(() => '');
      const command = await fs.readFile(path.join('/proc', pid, 'cmdline'), 'utf8').catch(() => '');
      return cwd.startsWith(folder) || command.includes(folder)
        ? `${pid} ${command.replaceAll('\0', ' ')}`
        : '';
    }),
  );
  return found.filter((each) => each !== '');
}
