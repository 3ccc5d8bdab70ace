// Runs a service for development: `node libraries/chassis/dev/serve.ts <service>`, with PORT set. It owns the ports;
// the service runs in a child, and each save in a new one, which takes over once it is ready. Of ../src, which is saved
// meanwhile, nothing but source.ts is imported: a save that breaks it breaks a child, and not what starts the next one.
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

/** As in the chassis's config.ts. */
const defaultMetricsPort = '9091';
/** The wait between two attempts to listen on a port that is taken, in milliseconds. */
const retryDelay = 200;

function say(text: string): void {
  process.stdout.write(`[reload] ${text}\n`);
}

function fail(reason: string): never {
  process.stderr.write(`${reason}\n`);
  process.exit(1);
}

/**
 * @param least 1 where nobody would learn which port it got for 0
 * @param otherwise the port where the variable is unset
 */
function portOf(variable: string, least = 1, otherwise?: string): number {
  const text = process.env[variable] || otherwise;
  const port = Number(text);
  if (Number.isInteger(port) && port >= least && port <= 65_535) return port;
  fail(`${variable} must be a whole number from ${least} to 65535, not ${JSON.stringify(text)}`);
}

/** @param isPatient whether to wait for a port that is taken, instead of exiting */
async function listen(server: Server, variable: string, port: number, host?: string, isPatient = false) {
  for (let attempt = 1; ; attempt += 1) {
    server.listen({ port, host });
    try {
      await once(server, 'listening');
      return;
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      const isTaken = code === 'EADDRINUSE';
      const reason = `${variable} ${port} cannot be listened on: ${isTaken ? 'it is taken by another process' : message}`;
      if (!isTaken || !isPatient) fail(reason);
      if (attempt === 1) say(`${reason}; trying again until it is free`);
    }
    await sleep(retryDelay);
  }
}

async function main(): Promise<void> {
  const [service = ''] = process.argv.slice(2);
  if (!existsSync(join(root, 'services', service, 'src/main.ts'))) {
    fail(`serve.ts wants the name of a folder of services/, not '${service}'`);
  }
  let watcher: Watcher | undefined;
  const inspect = Boolean(process.env.INSPECT_PORT);
  const reloader = new Reloader({ root, service, inspect, say, onMissed: () => watcher?.renew() });
  const gateway = createGateway(() => reloader.serving());
  const host = process.env.HOST || undefined;
  await listen(gateway, 'PORT', portOf('PORT'), host);
  const metrics = createGateway(async () => {
    const generation = await reloader.serving();
    return { port: generation.metricsPort, hold: () => generation.hold() };
  });
  // Services on one machine have the same port by default: that must keep none of them from starting.
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
  // A reader that was killed takes nothing else with it.
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
