// A process that has loaded the packages of a service, and loads the service itself once it is told to: the
// packages are most of a start, and no save changes them. `child.ts <service>`, in the folder that holds `services`.
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { get } from 'node:http';
import { url } from 'node:inspector';
import { stripTypeScriptTypes } from 'node:module';
import type { AddressInfo } from 'node:net';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import express from 'express';
import pg from 'pg';

const [service = ''] = process.argv.slice(2);
const folder = join(process.cwd(), 'services', service);

process.on('disconnect', () => process.kill(process.pid, 'SIGTERM'));
// A path as it is may hold what a URL would read in another way, such as % and #.
const main = pathToFileURL(join(folder, 'src/main.ts')).href;
process.once('message', () => void import(main));
process.send?.({ inspector: url() });

await importPackages();
// What is wrong is for the service to say.
await warmUp().catch(() => {});

async function importPackages(): Promise<void> {
  for (const each of ['libraries/kit', folder]) {
    const manifest = readFileSync(resolve(each, 'package.json'), 'utf8');
    const names = Object.keys(JSON.parse(manifest).dependencies);
    for (const name of names.filter(isLoadedAtStart)) await import(name);
  }
}

/** The kit is no package but source, and tracing's are loaded only where it is on. */
function isLoadedAtStart(name: string): boolean {
  if (name.startsWith('@opentelemetry/')) return Boolean(process.env.OTEL_EXPORTER_OTLP_ENDPOINT);
  return !name.startsWith('@payloop/');
}

/** Does once what each start does: what runs for the first time takes several times as long (48 ms less of 100). */
async function warmUp(): Promise<void> {
  stripTypeScriptTypes('');
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
