import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { until } from './cluster.ts';

const root = resolve(import.meta.dirname, '..');
const notCopied = new Set(['node_modules', '.git', '.payloop', 'dist']);

/** `tilt up` in a copy of this folder, whose files a test may change. */
export class Tilt {
  readonly folder: string;
  /** All that Tilt has said so far. */
  log = '';
  readonly #process: ChildProcess;

  private constructor(folder: string, port: number, args: string[]) {
    this.folder = folder;
    // A group of its own, so that what Tilt started ends with it.
    this.#process = spawn('tilt', ['up', '--stream', `--port=${port}`, ...args], {
      cwd: folder,
      detached: true,
    });
    // Also with a process that is interrupted before this is up.
    process.once('exit', () => this.#interrupt());
    for (const stream of [this.#process.stdout, this.#process.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => (this.log += text));
    }
  }

  /**
   * Resolves when the payment test has passed for the first time.
   * @param args more of them for Tilt
   * @param seconds how long that may take
   * @param prepare changes the folder before Tilt sees it
   */
  static async up({
    args = [] as string[],
    seconds = 100,
    prepare = async (_folder: string) => {},
  } = {}): Promise<Tilt> {
    const folder = await mkdtemp(join(tmpdir(), 'payloop-'));
    await cp(root, folder, { recursive: true, filter: (path) => !notCopied.has(basename(path)) });
    await prepare(folder);
    const tilt = new Tilt(folder, await freePort(), args);
    try {
      await tilt.says(/payment-test │ ok 8/, 0, seconds);
      return tilt;
    } catch (error) {
      await tilt.down();
      throw error;
    }
  }

  /** Waits for a line behind a position of the log. @throws {Error} with the log's end when it does not come */
  async says(line: RegExp, from: number, seconds: number): Promise<void> {
    await until(`${line}`, seconds, () => line.test(this.log.slice(from))).catch((error: unknown) => {
      throw new Error(
        `Tilt's log, which should have had ${line}, ends in:\n${this.log.slice(from).slice(-3_000)}`,
        {
          cause: error,
        },
      );
    });
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
