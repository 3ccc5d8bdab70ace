// Runs a service for development: `node libraries/chassis/dev/serve.ts <service>`, with PORT set. This process owns the
// ports. The service runs in a child process. Each save starts a new child, which takes over once it is ready. This
// process imports nothing from ../src but source.ts: a broken save in ../src breaks a child, not the process that
// starts the next one.
import { existsSync } from 'node:fs';
import { once } from 'node:events';
import type { Server } from 'node:net';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createGateway } from './gateway.ts';
import { createInspector } from './inspector.ts';
import { sourceFolders } from '../src/source.ts';
import { Reloader } from './reloader.ts';
import { watch, type Watcher } from './watcher.ts';

const root = resolve(import.meta.dirname, '../../..');

/** The default of METRICS_PORT, as in ../src/config.ts. */
const defaultMetricsPort = '9091';
/** The wait between two attempts to listen on a port that is in use, in milliseconds. */
const retryDelay = 200;

function say(text: string): void {
  process.stdout.write(`[reload] ${text}\n`);
}

function fail(reason: string): never {
  process.stderr.write(`${reason}\n`);
  process.exit(1);
}

/**
 * @param min the minimum; 0 makes the system pick a free port, which nothing prints
 * @param fallback the port if the variable is unset or empty
 */
function portOf(variable: string, min = 1, fallback?: string): number {
  const text = process.env[variable] || fallback;
  const port = Number(text);
  if (Number.isInteger(port) && port >= min && port <= 65_535) return port;
  fail(`${variable} must be a whole number from ${min} to 65535, not ${JSON.stringify(text)}`);
}

/** @param isPatient whether to retry while the port is in use, instead of exiting */
async function listen(server: Server, variable: string, port: number, host?: string, isPatient = false) {
  for (let attempt = 1; ; attempt += 1) {
    server.listen({ port, host });
    try {
      await once(server, 'listening');
      return;
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      if (code !== 'EADDRINUSE') fail(`Cannot listen on ${variable} ${port}: ${message}`);
      const reason = `${variable} ${port} is in use by another process.`;
      if (!isPatient) fail(`${reason} Stop it, or set another ${variable}.`);
      if (attempt === 1) say(`${reason} Retrying until it is free.`);
    }
    await sleep(retryDelay);
  }
}

async function main(): Promise<void> {
  const [service = ''] = process.argv.slice(2);
  if (!existsSync(join(root, 'services', service, 'src/main.ts'))) {
    fail(`serve.ts needs the name of a folder in services/, not '${service}'`);
  }
  let watcher: Watcher | undefined;
  const inspect = Boolean(process.env.INSPECT_PORT);
  const reloader = new Reloader({ root, service, inspect, say, onMissed: () => watcher?.renew() });
  const gateway = createGateway(() => reloader.serving());
  const host = process.env.HOST || undefined;
  await listen(gateway, 'PORT', portOf('PORT'), host);
  const metrics = createGateway(async () => {
    const serviceProcess = await reloader.serving();
    return { port: serviceProcess.metricsPort, hold: () => serviceProcess.hold() };
  });
  // Services on one machine share the default metrics port. A conflict must not keep any of them from starting.
  void listen(metrics, 'METRICS_PORT', portOf('METRICS_PORT', 0, defaultMetricsPort), host, true);
  if (inspect) {
    const inspector = createInspector(() => reloader.serving());
    await listen(inspector, 'INSPECT_PORT', portOf('INSPECT_PORT'), '127.0.0.1');
  }
  reloader.start();
  watcher = watch({
    root,
    paths: sourceFolders(service),
    onChange: (files) => reloader.changed(files),
    say: (text) => say(`${service}: ${text}`),
  });
  // If the process that reads the output is killed, writes fail with EPIPE. The service keeps running.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
  let stopping = false;
  const stop = async () => {
    if (stopping) return;
    stopping = true;
    watcher?.stop();
    gateway.close();
    await reloader.stop();
    process.exit();
  };
  process.on('SIGTERM', () => void stop()).on('SIGINT', () => void stop());
}

await main();
