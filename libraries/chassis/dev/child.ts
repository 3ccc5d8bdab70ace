// A process that has loaded the packages of a service and linked its sources, and runs the service once it is told to:
// that is most of a start, and a save changes little of it. `child.ts <service>`, in the folder that holds `services`.
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { get } from 'node:http';
import { url } from 'node:inspector';
import { stripTypeScriptTypes } from 'node:module';
import type { AddressInfo } from 'node:net';
import { join, resolve } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import express from 'express';
import pg from 'pg';
import { z } from 'zod';
import { linkAhead } from './ahead.ts';

const [service = ''] = process.argv.slice(2);
const folder = join(process.cwd(), 'services', service);

process.on('disconnect', () => process.kill(process.pid, 'SIGTERM'));
const isTraced = Boolean(process.env.OTEL_EXPORTER_OTLP_ENDPOINT);
// A path as it is may hold what a URL would read in another way, such as % and #.
const toUrl = (path: string) => pathToFileURL(path).href;
const main = toUrl(join(folder, 'src/main.ts'));
let isTold = false;
let linking: Promise<() => void> | undefined;
process.once('message', () => void start());
process.send?.({ inspector: url() });

await importPackages();
// What a first process was told meanwhile is heard now.
await setImmediate();
// Debuggers set breakpoints by the URLs of a cold start.
if (!isTold && url() === undefined) linking = linkAhead(entries().filter(existsSync).map(toUrl));
await linking;
// What is wrong is for the service to say.
await warmUp().catch(() => {});

async function start(): Promise<void> {
  isTold = true;
  const useUnchanged = await linking;
  useUnchanged?.();
  await import(main);
}

async function importPackages(): Promise<void> {
  for (const each of ['libraries/chassis', folder]) {
    const manifest = readFileSync(resolve(each, 'package.json'), 'utf8');
    const names = Object.keys(JSON.parse(manifest).dependencies);
    for (const name of names.filter(isLoadedAtStart)) await import(name);
  }
}

/** The chassis is no package but source, and tracing's are loaded only where it is on. */
function isLoadedAtStart(name: string): boolean {
  if (name.startsWith('@opentelemetry/')) return isTraced;
  return !name.startsWith('@payloop/');
}

/** The files of a start that others import dynamically, or none. */
function entries(): string[] {
  const files = ['main.ts', 'service.ts'].map((name) => join(folder, 'src', name));
  return isTraced ? [...files, resolve('libraries/chassis/src/otel.ts')] : files;
}

/** Does once what each start does: what runs for the first time takes several times as long (48 ms less of 100). */
async function warmUp(): Promise<void> {
  stripTypeScriptTypes('');
  const schema = { word: z.enum(['a']).default('a'), number: z.string().transform(Number).optional() };
  z.object(schema).safeParse({ number: '1' });
  const { DATABASE_URL, DATABASE_URL_FILE = '' } = process.env;
  const pool = new pg.Pool({
    connectionString: DATABASE_URL || readFileSync(DATABASE_URL_FILE, 'utf8').trim(),
  });
  await pool.query('SELECT 1');
  await pool.end();
  const server = express()
    .get('/', (_request, response) => void response.json({}))
    .listen(0, '127.0.0.1');
  await once(server, 'listening');
  const [answer] = await once(
    get({ port: (server.address() as AddressInfo).port, agent: false }),
    'response',
  );
  await once(answer.resume(), 'end');
  server.close();
}
