// Runs a service for development: `node libraries/kit/dev/serve.ts <service>`, with PORT set. It owns the port;
// the service runs in a child, and each save in a new one, which takes over once it is ready. Of ../src, which is saved
// meanwhile, nothing but source.ts is imported: a save that breaks it breaks a child, and not what starts the next one.
import { existsSync } from 'node:fs';
import { once } from 'node:events';
import type { Server } from 'node:net';
import { join, resolve } from 'node:path';
import { createGateway } from './gateway.ts';
import { createInspector } from './inspector.ts';
import { sourceFolders } from '../src/source.ts';
import { Reloader } from './reloader.ts';
import { watch, type Watcher } from './watcher.ts';

const root = resolve(import.meta.dirname, '../../..');

function say(text: string): void {
  process.stdout.write(`[reload] ${text}\n`);
}

function fail(reason: string): never {
  process.stderr.write(`${reason}\n`);
  process.exit(1);
}

/** A port from 1 up, as a supervisor cannot tell anybody which one it got for 0. */
function portOf(variable: string): number {
  const port = Number(process.env[variable]);
  if (Number.isInteger(port) && port >= 1 && port <= 65_535) return port;
  fail(`${variable} must be a whole number from 1 to 65535, not ${JSON.stringify(process.env[variable])}`);
}

async function listen(server: Server, variable: string, host?: string): Promise<void> {
  const port = portOf(variable);
  server.listen({ port, host });
  await once(server, 'listening').catch((error: NodeJS.ErrnoException) =>
    fail(
      `${variable} ${port} cannot be listened on: ${error.code === 'EADDRINUSE' ? 'it is taken by another process' : error.message}`,
    ),
  );
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
  await listen(gateway, 'PORT', process.env.HOST || undefined);
  if (inspect) {
    const inspector = createInspector(() => reloader.serving());
    await listen(inspector, 'INSPECT_PORT', '127.0.0.1');
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
