import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import { resolve } from 'node:path';
import { ConfigError } from './config.ts';
import { createLog, reduceError } from './log.ts';
import type { Self } from './self.ts';
import type { Running } from './server.ts';
import { hashSource } from './source.ts';
import { startTracing, stopTracing } from './tracing.ts';

/** The interface of a service's module. */
export interface Service {
  start(self: Self): Promise<Running>;
}

/** The hash of the sources: inserted by the build, or set by the development server, which checks it after the start. */
declare const KNOWN_SOURCE: string | undefined;

/** How long the process may take to exit after a signal, in milliseconds. After that it exits with code 1. */
const exitTimeout = 30_000;

/**
 * Runs a service in this process until SIGTERM or SIGINT. Exits with a one-line message if a setting is invalid.
 * @param load imports the service; called after its source files are hashed
 */
export async function run(name: string, load: () => Promise<Service>): Promise<void> {
  try {
    const { service, source } = await loadWithHash(name, async () => {
      await startTracing(name, process.env);
      return load();
    });
    let failed: string | undefined;
    process.on('message', (message: { failed?: string | null }) => (failed = message.failed ?? undefined));
    const running = await service.start({
      source,
      failed: () => failed,
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
 * Hashes the sources before and after importing the service. If a file changed in between, the loaded code may be old
 * or new, and gets no hash. The hash is never computed again: later it would describe new code while the old code runs.
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
