// @module-tag slow
import { once } from 'node:events';
import { mkdir, mkdtemp, realpath, rm, writeFile } from 'node:fs/promises';
import { connect, type AddressInfo, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { exists } from '../../../local/processes.ts';
import { Debugger } from '../../../tests/support/debugger.ts';
import { createInspector } from './inspector.ts';
import { Reloader } from './reloader.ts';

const main = `
import { createServer } from 'node:http';
import { url } from 'node:inspector';
import { greet } from './greet.ts';
import { same } from './same.ts';
const server = createServer((request, response) => {
  if (request.url === '/inspector') response.end(url() ?? 'none');
  else if (request.url === '/same') response.end(same);
  else response.end(greet({ name: 'you' }));
});
server.listen(0, '127.0.0.1', () => {
  process.send?.({ port: (server.address() as { port: number }).port });
  process.send?.({ ready: true });
});
process.on('SIGTERM', () => server.close(() => process.exit()));
`;

/** Has types above the breakpoint and before it on its line: they must not move it. */
const greet = (word: string) => `
interface Who { name: string }
export function greet({ name }: Who): string { const word: string = '${word}';
  const both: string = word + ' ' + name; return both as string;
}
`;
const breakpointLine = 4;

let root: string;
let file: string;
let reloader: Reloader;
let inspector: Server;
let port: number;

beforeEach(async () => {
  root = await realpath(await mkdtemp(join(tmpdir(), 'payloop-inspect-')));
  for (const folder of ['libraries/chassis', 'services/toy']) {
    await mkdir(join(root, folder, 'src'), { recursive: true });
    await writeFile(join(root, folder, 'package.json'), '{"type":"module","dependencies":{}}');
  }
  file = join(root, 'services/toy/src/greet.ts');
  await writeFile(join(root, 'services/toy/src/main.ts'), main);
  await writeFile(file, greet('hello'));
  await writeFile(join(root, 'services/toy/src/same.ts'), `export const same = import.meta.url;`);
});
afterEach(async () => {
  inspector.close();
  await reloader.stop();
  await rm(root, { recursive: true });
});

async function start({ inspect }: { inspect: boolean }): Promise<void> {
  reloader = new Reloader({ root, service: 'toy', inspect, say: () => {} });
  reloader.start();
  inspector = createInspector(() => reloader.serving()).listen(0, '127.0.0.1');
  await once(inspector, 'listening');
  ({ port } = inspector.address() as AddressInfo);
}

async function ask(path = '/'): Promise<string> {
  const serving = await reloader.serving();
  return (await fetch(`http://127.0.0.1:${serving.port}${path}`)).text();
}

async function save(content: string): Promise<void> {
  await writeFile(file, content);
  reloader.changed([]);
}

/** Attaches a debugger and sends a request that stops at the given line. */
async function stopped(line = breakpointLine) {
  const attached = await Debugger.attach(port);
  expect(await attached.breakAt(pathToFileURL(file).href, line)).toEqual([line]);
  const paused = attached.paused();
  const answer = ask();
  const pause = await paused;
  expect(pause).toMatchObject({ url: pathToFileURL(file).href, line });
  return { attached, answer, pause };
}

test('a breakpoint in a TypeScript source stops a request before and after a save, on the same port', async () => {
  await start({ inspect: true });
  const { attached, answer, pause } = await stopped();
  expect(await pause.evaluate('[word, name]')).toEqual(['hello', 'you']);
  await attached.resume();
  expect(await answer).toBe('hello you');

  await save(`// one line more\n${greet('bye')}`);
  await attached.closed;
  const again = await stopped(breakpointLine + 1);
  expect(await again.pause.evaluate('[word, name]')).toEqual(['bye', 'you']);
  await again.attached.resume();
  expect(await again.answer).toBe('bye you');
  await again.attached.close();
});

test('serves a save while the old process is paused, and that process exits', async () => {
  await start({ inspect: true });
  const { attached, answer, pause } = await stopped();
  const pid = Number(await pause.evaluate('process.pid'));

  const before = await reloader.serving();
  await save(greet('bye'));
  await expect.poll(() => reloader.serving(), { timeout: 10_000 }).not.toBe(before);
  expect(await ask()).toBe('bye you');
  // The process resumes once its debugger is disconnected.
  await attached.closed;
  expect(await answer).toBe('hello you');
  await expect.poll(() => exists(pid), { timeout: 5_000 }).toBe(false);
});

test('does not reset a debugger that is still sending, which would end a port forward', async () => {
  await start({ inspect: true });
  const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true });
  const errors: Error[] = [];
  socket.on('error', (error) => errors.push(error)).resume();
  socket.write('GET /json/list HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n');
  await once(socket, 'data');
  await save(greet('bye'));
  await once(socket, 'end');
  for (let times = 0; times < 5; times += 1) {
    socket.write('more');
    await sleep(10);
  }
  socket.end();
  await expect.poll(() => socket.closed, { timeout: 5_000 }).toBe(true);
  expect(errors).toEqual([]);
});

test('after a save, unchanged files have the same URLs as before, so that their breakpoints bind', async () => {
  await start({ inspect: true });
  for (const word of ['bye', 'hello again']) {
    // Waits for the standby process to load its packages.
    await sleep(1_500);
    await save(greet(word));
    await expect.poll(() => ask(), { timeout: 10_000 }).toBe(`${word} you`);
    expect(await ask('/same')).toMatch(/same\.ts$/);
  }
});

test('no process has an inspector when debugging is off', async () => {
  await start({ inspect: true });
  expect(await ask('/inspector')).toMatch(/^ws:\/\/127\.0\.0\.1:/);
  inspector.close();
  await reloader.stop();
  await start({ inspect: false });
  expect(await ask('/inspector')).toBe('none');
  await expect(Debugger.attach(port)).rejects.toThrow(/socket hang up/);
});
