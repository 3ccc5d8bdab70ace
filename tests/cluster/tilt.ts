import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { until } from './cluster.ts';

const root = resolve(import.meta.dirname, '../..');
const notCopied = new Set(['node_modules', '.git', '.payloop', 'dist']);

/** Copies this tree, except installed and built files, to a temporary folder that a test may change. */
export async function copyProject(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'payloop-'));
  await cp(root, folder, { recursive: true, filter: (path) => !notCopied.has(basename(path)) });
  return folder;
}

/** Runs `tilt up`, or a command that starts it, in a copy of this tree. */
export class Tilt {
  readonly folder: string;
  /** The output of Tilt so far. */
  log = '';
  readonly #process: ChildProcess;

  private constructor(folder: string, [command = '', ...args]: string[]) {
    this.folder = folder;
    // A separate process group, so that a signal also stops the processes that Tilt started.
    this.#process = spawn(command, args, { cwd: folder, detached: true });
    // Stops Tilt if this process exits before `down`, for example when `up` is interrupted.
    process.once('exit', () => this.#interrupt());
    for (const stream of [this.#process.stdout, this.#process.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => (this.log += text));
    }
  }

  /**
   * Starts Tilt and waits until the payment test has passed for the first time.
   * @param command starts Tilt; the default uses a free port
   * @param args more arguments for the command
   * @param green matches the output once the payment test has passed
   * @param seconds the time limit for that
   * @param prepare changes the folder before Tilt reads it
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
      await tilt.waitForLine(green, 0, seconds);
      return tilt;
    } catch (error) {
      await tilt.down();
      throw error;
    }
  }

  /** Waits for a line in the log after a position. @throws {Error} with the end of the log if the line is missing */
  async waitForLine(line: RegExp, from: number, seconds: number): Promise<void> {
    await until(`${line}`, seconds, () => line.test(this.log.slice(from))).catch((error: unknown) => {
      throw new Error(`Tilt's log has no match for ${line}. End of Tilt's log:\n${this.tail(from)}`, {
        cause: error,
      });
    });
  }

  /** Returns the last 60 lines of the log after a position. Omits request logs, which would fill them. */
  tail(from = 0): string {
    const lines = this.log.slice(from).split('\n');
    return lines
      .filter((line) => !line.includes('"msg":"request"'))
      .slice(-60)
      .join('\n');
  }

  /** Stops Tilt. Its deployments stay, as with Ctrl-C. */
  async down(): Promise<void> {
    const exited = once(this.#process, 'exit');
    if (this.#interrupt()) await exited;
    await rm(this.folder, { recursive: true });
  }

  /** @returns whether Tilt was running */
  #interrupt(): boolean {
    const { pid, exitCode, signalCode } = this.#process;
    const wasRunning = pid !== undefined && exitCode === null && signalCode === null;
    if (wasRunning) process.kill(-pid, 'SIGINT');
    return wasRunning;
  }
}

/** Finds a free port, because the user's own Tilt may use the default one. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}
