import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import { resolve } from 'node:path';
import { ConfigError } from './config.ts';
import { createLog, reduceError } from './log.ts';
import type { Self } from './self.ts';
import type { Running } from './server.ts';
import { hashSource } from './source.ts';
import { startTracing, stopTracing } from './tracing.ts';

/** What a service's module offers. */
export interface Service {
  start(self: Self): Promise<Running>;
}

/** Set by the build to the hash of the sources that it bundled. */
declare const BUNDLED_SOURCE: string | undefined;

/** How long the process may take to end after a signal, in milliseconds; then it is ended. */
const exitTimeout = 30_000;

/**
 * Runs a service as this process until SIGTERM or SIGINT. A setting that cannot be used ends it with one line.
 * @param load imports the service; called once the hash of its files is fixed
 */
export async function run(name: string, load: () => Promise<Service>): Promise<void> {
  try {
    const { service, source } = await loadPinned(name, async () => {
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
    // Only a parent that forked this process listens: see libraries/chassis/dev.
    process.send?.({ port: running.port, metricsPort: running.metricsPort });
    if (await running.ready) process.send?.({ ready: true });
  } catch (error) {
    const line = error instanceof ConfigError ? error.message : (reduceError(error).stack ?? String(error));
    process.stderr.write(`${name}: ${line}\n`);
    // Whatever the failed start left open must not keep the process.
    process.exit(1);
  }
}

/**
 * The hash is taken before the service is imported, and once more after: a file that changed in between may
 * have been read in either state, so the code that runs then has no hash, and a watcher has a restart due.
 * It is not read again, which would tell of new code while the old runs.
 */
async function loadPinned(name: string, load: () => Promise<Service>) {
  if (typeof BUNDLED_SOURCE === 'string') return { service: await load(), source: BUNDLED_SOURCE };
  const root = resolve(import.meta.dirname, '../../..');
  const before = hashSource(root, name);
  const service = await load();
  return { service, source: hashSource(root, name) === before ? before : 'changed while it was loaded' };
}

function stopOnSignal(name: string, running: Running): void {
  let stopping = false;
  const stop = async () => {
    // A signal may come twice, to the process and to its group; the second one must not cut short what the first one began.
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
