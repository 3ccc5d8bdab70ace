import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { until } from './cluster.ts';

const root = resolve(import.meta.dirname, '../..');
const notCopied = new Set(['node_modules', '.git', '.payloop', 'dist']);

/** Copies this folder, without what was installed or built, to a temporary one whose files a test may change. */
export async function copyProject(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'payloop-'));
  await cp(root, folder, { recursive: true, filter: (path) => !notCopied.has(basename(path)) });
  return folder;
}

/** `tilt up`, or what comes down to it, in a copy of this folder. */
export class Tilt {
  readonly folder: string;
  /** All that Tilt has said so far. */
  log = '';
  readonly #process: ChildProcess;

  private constructor(folder: string, [command = '', ...args]: string[]) {
    this.folder = folder;
    // A group of its own, so that what Tilt started ends with it.
    this.#process = spawn(command, args, { cwd: folder, detached: true });
    // Also with a process that is interrupted before this is up.
    process.once('exit', () => this.#interrupt());
    for (const stream of [this.#process.stdout, this.#process.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => (this.log += text));
    }
  }

  /**
   * Resolves when the payment test has passed for the first time.
   * @param command starts Tilt in some way; by default at a free port
   * @param args more of them for Tilt
   * @param green what shows that the payment test has passed
   * @param seconds how long that may take
   * @param prepare changes the folder before Tilt sees it
   */
  static async up({
    command = undefined as string[] | undefined,
    args = [] as string[],
    green = /payment-test │ ok 8/,
    seconds = 100,
    prepare = async (_folder: string) => {},
  } = {}): Promise<Tilt> {
    const folder = await copyProject();
    await prepare(folder);
    const start = command ?? ['tilt', 'up', '--stream', `--port=${await freePort()}`];
    const tilt = new Tilt(folder, [...start, ...args]);
    try {
      await tilt.says(green, 0, seconds);
      return tilt;
    } catch (error) {
      await tilt.down();
      throw error;
    }
  }

  /** Waits for a line behind a position of the log. @throws {Error} with the log's end when it does not come */
  async says(line: RegExp, from: number, seconds: number): Promise<void> {
    await until(`${line}`, seconds, () => line.test(this.log.slice(from))).catch((error: unknown) => {
      throw new Error(`Tilt's log, which should have had ${line}, ends in:\n${this.tail(from)}`, {
        cause: error,
      });
    });
  }

  /** The end of its log behind a position, without the requests of services, which would be all of it. */
  tail(from = 0): string {
    const lines = this.log.slice(from).split('\n');
    return lines
      .filter((line) => !line.includes('"msg":"request"'))
      .slice(-60)
      .join('\n');
  }

  /** Ends Tilt; what it deployed stays, as with Ctrl-C. */
  async down(): Promise<void> {
    const ended = once(this.#process, 'exit');
    if (this.#interrupt()) await ended;
    await rm(this.folder, { recursive: true });
  }

  /** @returns whether it ran */
  #interrupt(): boolean {
    const { pid, exitCode, signalCode } = this.#process;
    const runs = pid !== undefined && exitCode === null && signalCode === null;
    if (runs) process.kill(-pid, 'SIGINT');
    return runs;
  }
}

/** A port that nothing listens on; Tilt's usual one may be taken by the user's own. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}
