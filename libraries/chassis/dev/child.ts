// A process of a service: `child.ts <service>`, run in the folder that holds `services`. Loads packages and links the
// sources, which takes most of a start and usually stays valid after a save. Runs the service once its parent sends a
// `Load` message.
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { Agent, get } from 'node:http';
import { url } from 'node:inspector';
import { stripTypeScriptTypes } from 'node:module';
import type { AddressInfo } from 'node:net';
import { join, resolve } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import express from 'express';
import pg from 'pg';
import pino from 'pino';
import { Histogram, Registry } from 'prom-client';
import { z } from 'zod';
import { linkAhead } from './ahead.ts';
import type { Load } from './service-process.ts';

const [service = ''] = process.argv.slice(2);
const folder = join(process.cwd(), 'services', service);

process.on('disconnect', () => process.kill(process.pid, 'SIGTERM'));
const isTraced = Boolean(process.env.OTEL_EXPORTER_OTLP_ENDPOINT);
// Escapes characters that have a meaning in a URL, such as % and #.
const toUrl = (path: string) => pathToFileURL(path).href;
const main = toUrl(join(folder, 'src/main.ts'));
let isStarting = false;
let linking: Promise<() => void> | undefined;
process.once('message', (message: Load) => void start(message));
process.send?.({ inspector: url() });

const packages = await importPackages();
// Lets a message arrive that was sent during the imports: the parent sends the first process its message at once.
await setImmediate();
// Links nothing with an inspector: debuggers set breakpoints by the URLs of a cold start.
if (!isStarting && url() === undefined) linking = linkAhead(entryFiles().filter(existsSync).map(toUrl));
await linking;
// Ignores errors: the service reports them when it starts.
await warmUp().catch(() => {});

/** Runs the service. The reloader checks the hash once more before the service gets requests. */
async function start({ source }: Load): Promise<void> {
  isStarting = true;
  Object.assign(globalThis, { KNOWN_SOURCE: source });
  const useUnchanged = await linking;
  useUnchanged?.();
  await import(main);
}

/** Imports what the chassis and the service depend on. @returns the modules by package name */
async function importPackages(): Promise<Map<string, any>> {
  const imported = new Map<string, any>();
  for (const packageFolder of ['libraries/chassis', folder]) {
    const manifest = readFileSync(resolve(packageFolder, 'package.json'), 'utf8');
    const names = Object.keys(JSON.parse(manifest).dependencies);
    for (const name of names.filter(isLoadedAtStart)) imported.set(name, await import(name));
  }
  return imported;
}

/** Skips the chassis, which is source, and skips OpenTelemetry when tracing is off. */
function isLoadedAtStart(name: string): boolean {
  if (name.startsWith('@opentelemetry/')) return isTraced;
  return !name.startsWith('@payloop/');
}

/** The files of a start that no other file imports statically. */
function entryFiles(): string[] {
  const files = ['main.ts', 'service.ts'].map((name) => join(folder, 'src', name));
  return isTraced ? [...files, resolve('libraries/chassis/src/otel.ts')] : files;
}

/**
 * Does once, with the packages alone, what a start and its first request do: code takes several times as long on its
 * first run. Saves 40 of 95 ms.
 */
async function warmUp(): Promise<void> {
  stripTypeScriptTypes('');
  const text = z.string().transform(Number).refine(Number.isFinite);
  const schema = { word: z.enum(['a']).default('a'), number: text.optional(), wrong: text };
  z.object(schema).safeParse({ number: '1', wrong: '' });
  const log = pino({ formatters: { level: (level) => ({ level }) } }, { write() {} });
  log.info({ path: '/' }, 'request');
  const registers = [new Registry()];
  const times = new Histogram({ name: 'times', help: 'times', labelNames: ['path'], registers });
  times.observe({ path: '/' }, 1);
  const { DATABASE_URL, DATABASE_URL_FILE = '' } = process.env;
  const pool = new pg.Pool({
    connectionString: DATABASE_URL || readFileSync(DATABASE_URL_FILE, 'utf8').trim(),
  });
  await pool.query('SELECT $1::text', ['1']);
  await pool.end();
  const app = express();
  app.use((request, response, next) => {
    response.set({ 'X-Request-Id': request.get('X-Request-Id') ?? '' });
    next();
  });
  app
    .route('/:name')
    .get((_request, response) => void response.json({}))
    .all(() => {});
  const server = app.listen(0, '127.0.0.1');
  await once(server, 'listening');
  try {
    const { port } = server.address() as AddressInfo;
    const address = `http://127.0.0.1:${port}/name`;
    const [answer] = await once(get(address, { agent: false }), 'response');
    await once(answer.resume(), 'end');
    // Services call each other with axios.
    await packages.get('axios')?.default.get(address, { proxy: false, httpAgent: new Agent() });
  } finally {
    server.close();
  }
}
