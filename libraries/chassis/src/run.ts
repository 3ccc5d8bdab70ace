import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import { resolve } from 'node:path';
import { ConfigError } from './config.ts';
import { createLog, reduceError } from './log.ts';
import type { Self } from './self.ts';
import type { Running } from './server.ts';
import { hashSource } from './source.ts';
import { startTracing, stopTracing } from './tracing.ts';

/** The exports of a service's `src/service.ts` that `run` uses. */
export interface Service {
  start(self: Self): Promise<Running>;
}

/**
 * The hash of the sources, if it is known before they are loaded. The build embeds it in the bundle. In development,
 * `dev/child.ts` sets it, and the reloader hashes the sources again before the service gets requests.
 */
declare const KNOWN_SOURCE: string | undefined;

/**
 * How long the process may take to exit after a signal, in milliseconds. After that it exits with code 1. Covers the
 * maximum of SHUTDOWN_DELAY_MS (10 s), the `drainTimeout` of server.ts (20 s), and 3 s to close the database. Together
 * with the preStop hook (5 s), it stays below terminationGracePeriodSeconds (40 s), after which Kubernetes kills the
 * process.
 */
const exitTimeout = 33_000;

/**
 * Runs a service in this process until SIGTERM or SIGINT, then stops it and exits. Resolves once the service is ready
 * or stopped. If the start fails, writes the reason to standard error and exits with code 1: one line if a setting is
 * invalid, otherwise a stack.
 * @param load imports the service; unless the hash of the sources is known, they are hashed before and after
 */
export async function run(name: string, load: () => Promise<Service>): Promise<void> {
  try {
    const { service, source } = await loadWithHash(name, async () => {
      await startTracing(name, process.env);
      return load();
    });
    // The reloader of libraries/chassis/dev sends the hash of newer sources that failed to start; null for none.
    let failedSource: string | undefined;
    process.on('message', ({ failed }: { failed?: string | null }) => (failedSource = failed ?? undefined));
    const running = await service.start({
      source,
      failed: () => failedSource,
      instance: `${hostname()}-${randomBytes(3).toString('hex')}`,
      env: process.env,
    });
    stopOnSignal(name, running);
    // `send` exists only if a parent forked this process, as in development: see libraries/chassis/dev.
    process.send?.({ port: running.port, metricsPort: running.metricsPort });
    if (await running.ready) process.send?.({ ready: true });
  } catch (error) {
    const line = error instanceof ConfigError ? error.message : (reduceError(error).stack ?? String(error));
    process.stderr.write(`${name}: ${line}\n`);
    // Exits explicitly: handles that the failed start left open would keep the process alive.
    process.exit(1);
  }
}

/**
 * Imports the service, and returns it with the hash of its sources. Uses the known hash if there is one. Otherwise
 * hashes the sources before and after the import: if a file changed in between, the loaded code may be old or new, and
 * gets no hash. The hash is never computed again: later it would describe new code while the old code runs.
 */
async function loadWithHash(name: string, load: () => Promise<Service>) {
  if (typeof KNOWN_SOURCE === 'string') return { service: await load(), source: KNOWN_SOURCE };
  const root = resolve(import.meta.dirname, '../../..');
  const before = hashSource(root, name);
  const service = await load();
  return { service, source: hashSource(root, name) === before ? before : 'changed while it was loaded' };
}

function stopOnSignal(name: string, running: Running): void {
  let stopping = false;
  const stop = async () => {
    // A signal may arrive twice, sent to the process and to its group. The second must not interrupt the shutdown.
    if (stopping) return;
    stopping = true;
    setTimeout(() => process.exit(1), exitTimeout).unref();
    try {
      await running.stop();
      await stopTracing();
    } catch (err) {
      createLog(name, 'error').error({ err }, 'could not stop cleanly');
      process.exitCode = 1;
    }
    process.exit();
  };
  process.on('SIGTERM', () => void stop()).on('SIGINT', () => void stop());
}
