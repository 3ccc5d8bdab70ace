import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { once } from 'node:events';
import {
  Agent,
  createServer,
  request as send,
  type IncomingMessage,
  type RequestListener,
  type ServerResponse,
} from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import * as paymentProvider from '../../../services/payment-provider/src/service.ts';
import { startUnready } from '../../../tests/support/start-service.ts';
import { createGateway } from './gateway.ts';

const cleanup: (() => void)[] = [];
afterEach(() => {
  for (const each of cleanup.splice(0)) each();
});

async function start(server: ReturnType<typeof createServer>): Promise<number> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  cleanup.push(() => {
    server.close();
    server.closeAllConnections();
  });
  return (server.address() as AddressInfo).port;
}

function behind(listener: RequestListener): Promise<number> {
  return start(createServer(listener));
}

/** Starts a gateway to the port that `serving` returns. @returns the gateway's port */
function gateway(serving: () => Promise<number>): Promise<number> {
  return start(createGateway(async () => ({ port: await serving(), hold: () => () => {} })));
}

test('keeps idle connections as long as the chassis', async () => {
  const port = await gateway(() => behind((_request, response) => void response.end()));
  const { headers } = await fetch(`http://127.0.0.1:${port}`);
  expect(headers.get('keep-alive')).toBe('timeout=95');
});

interface Ask {
  port: number;
  method?: string;
  path?: string;
  headers?: Record<string, string>;
  body?: string;
  agent?: Agent | false;
}

async function ask({ port, method = 'GET', path = '/', headers = {}, body, agent = false }: Ask) {
  const request = send({ host: '127.0.0.1', port, method, path, headers, agent });
  // The server may answer and close while the body is still being sent.
  request.on('error', () => {});
  request.end(body);
  const [answer] = (await once(request, 'response')) as [IncomingMessage];
  return { status: answer.statusCode, headers: answer.headers, body: await text(answer), request };
}

test('forwards method, path, headers and body, and returns the answer unchanged', async () => {
  const service = await behind((request, response) => {
    const { method, url, headers } = request;
    response.writeHead(418, 'Short and Stout', {
      'X-Request-Id': headers['x-request-id'],
      'X-Two': ['a', 'b'],
    });
    response.write(JSON.stringify({ method, url, host: headers.host }));
    request.pipe(response);
  });
  const port = await gateway(async () => service);
  const answer = await ask({
    port,
    method: 'POST',
    path: '/invoices/pay?x=1&y=%20',
    headers: { 'X-Request-Id': 'abc', Host: 'localhost:8081' },
    body: 'not json',
  });
  expect(answer).toMatchObject({ status: 418, headers: { 'x-request-id': 'abc', 'x-two': 'a, b' } });
  expect(answer.body).toBe(
    '{"method":"POST","url":"/invoices/pay?x=1&y=%20","host":"localhost:8081"}not json',
  );
});

test('a client keeps its connection while processes are replaced, and gets the newest code', async () => {
  const old = await behind((_request, response) => void response.setHeader('Connection', 'close').end('old'));
  const fresh = await behind((_request, response) => void response.end('fresh'));
  let current = old;
  const port = await gateway(async () => current);
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  cleanup.push(() => agent.destroy());
  const first = await ask({ port, agent });
  current = fresh;
  const second = await ask({ port, agent });
  expect([first.body, second.body, second.request.reusedSocket]).toEqual(['old', 'fresh', true]);
});

test('an answer in flight comes from the process that began it', async () => {
  const began = Promise.withResolvers<() => void>();
  const old = await behind((_request, response) => {
    response.write('the first half, ');
    began.resolve(() => void response.end('the second half'));
  });
  let current = old;
  const port = await gateway(async () => current);
  const answer = ask({ port });
  const finish = await began.promise;
  current = await behind((_request, response) => void response.end('fresh'));
  expect((await ask({ port })).body).toBe('fresh');
  finish();
  expect((await answer).body).toBe('the first half, the second half');
});

test('holds a process during a request, and releases it after an answer or a reset', async () => {
  const service = await behind((request, response) => {
    if (request.url === '/broken') request.socket.destroy();
    else response.end('here');
  });
  const held: boolean[] = [];
  const hold = () => {
    const at = held.push(true) - 1;
    return () => (held[at] = false);
  };
  const port = await start(createGateway(async () => ({ port: service, hold })));
  await ask({ port });
  await ask({ port, path: '/broken' });
  await expect.poll(() => held).toEqual([false, false]);
});

test('a request waits for a process that is starting, and gets a 503 if none starts', async () => {
  const service = await behind((_request, response) => void response.end('here'));
  const starting = Promise.withResolvers<number>();
  const port = await gateway(() => starting.promise);
  const answer = ask({ port });
  setTimeout(() => starting.resolve(service), 50);
  expect((await answer).body).toBe('here');

  const none = await gateway(() => Promise.reject(new Error('invoice-app does not start, see its log')));
  expect(await ask({ port: none })).toMatchObject({
    status: 503,
    body: '{"error":"invoice-app does not start, see its log"}',
  });
});

test('returns 502 if the process exits before it answers, and cuts the answer off if it exits midway', async () => {
  const service = await behind((request, response) => {
    if (request.url === '/begin') response.write('begun');
    setTimeout(() => request.socket.destroy(), 20);
  });
  const port = await gateway(async () => service);
  expect(await ask({ port })).toMatchObject({ status: 502, body: expect.stringContaining('socket hang up') });
  await expect(ask({ port, path: '/begin' })).rejects.toThrow(/aborted/);
});

/** Returns the whole answer over a new connection, without its date and its connection headers. */
async function exchange(port: number, request: string, { half = false } = {}): Promise<string> {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true }).on('error', () => {});
  cleanup.push(() => socket.destroy());
  if (half) socket.end(request);
  else socket.write(request);
  const all = await text(socket);
  const [head = '', ...body] = all.split('\r\n\r\n');
  const lines = head.split('\r\n').filter((line) => !/^(Date|Connection|Keep-Alive):/i.test(line));
  return [...lines.slice(0, 1), ...lines.slice(1).toSorted(), '', ...body].join('\n');
}

describe('answers HTTP/1.0 requests and `Connection: close` as the service itself does', () => {
  const listener: RequestListener = (request, response) => {
    response.setHeader('X-Host', request.headers.host || 'none');
    if (request.url === '/length') response.setHeader('Content-Length', '4');
    if (request.url === '/none') response.writeHead(304).end();
    else {
      response.write('ab');
      setTimeout(() => response.end('cd'), 20);
    }
  };

  test.each(
    ['/chunks', '/length', '/none'].flatMap((path) => [
      `GET ${path} HTTP/1.0\r\n\r\n`,
      `GET ${path} HTTP/1.0\r\nHost: localhost\r\n\r\n`,
      `HEAD ${path} HTTP/1.0\r\n\r\n`,
      `POST ${path} HTTP/1.0\r\nContent-Length: 2\r\n\r\nxy`,
      `GET ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`,
      `HEAD ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`,
      `GET ${path} HTTP/1.1\r\nConnection: close\r\n\r\n`,
    ]),
  )('%j', async (request) => {
    const service = await behind(listener);
    const port = await gateway(async () => service);
    const answer = await exchange(port, request);
    expect(answer).toBe(await exchange(service, request));
    expect(request.includes('HTTP/1.0') && /transfer-encoding/i.test(answer)).toBe(false);
  });

  test.each(['HTTP/1.0', 'HTTP/1.1'])(
    'a client that closes its sending side gets its answer, in %s',
    async (version) => {
      const service = await behind(listener);
      const port = await gateway(async () => service);
      const request = `GET /length ${version}\r\nHost: localhost\r\n\r\n`;
      expect(await exchange(port, request, { half: true })).toMatch(/^HTTP\/1.1 200 OK[^]*abcd$/);
    },
  );

  test('without a Host, a real service gives the same responses through the gateway as directly', async () => {
    const { url } = await provider();
    const service = Number(new URL(url).port);
    const port = await gateway(async () => service);
    const request = 'GET /version HTTP/1.0\r\nX-Request-Id: same\r\n\r\n';
    const answer = await exchange(port, request);
    expect(answer).toMatch(/^HTTP\/1.1 200 OK/);
    expect(answer).toBe(await exchange(service, request));
    const evil = 'POST /reset HTTP/1.0\r\nOrigin: http://localhost\r\nX-Request-Id: same\r\n\r\n';
    expect(await exchange(port, evil)).toMatch(/^HTTP\/1.1 403/);
    expect(await exchange(service, evil)).toMatch(/^HTTP\/1.1 403/);
  });
});

/** Starts payment-provider without its database. */
async function provider() {
  const service = await startUnready(paymentProvider);
  cleanup.push(() => void service.stop());
  return service;
}

test('the service notices a client that disconnects before its answer', async () => {
  const asked = Promise.withResolvers<void>();
  const gone = Promise.withResolvers<void>();
  const service = await behind((_request, response) => {
    asked.resolve();
    response.on('close', () => gone.resolve());
  });
  const port = await gateway(async () => service);
  const client = connect(port, '127.0.0.1');
  client.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n');
  await asked.promise;
  client.destroy();
  await expect(gone.promise).resolves.toBeUndefined();
});

test('a client that disconnects while it waits leaves no connection to the starting process', async () => {
  let connections = 0;
  const server = createServer((_request, response) => void response.end('here'));
  server.on('connection', () => (connections += 1));
  const service = await start(server);
  const starting = Promise.withResolvers<number>();
  const asked = Promise.withResolvers<void>();
  const port = await gateway(() => {
    asked.resolve();
    return starting.promise;
  });
  const client = connect(port, '127.0.0.1');
  client.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n');
  await asked.promise;
  client.destroy();
  await sleep(50);
  starting.resolve(service);
  expect((await ask({ port })).body).toBe('here');
  expect(connections).toBe(1);
});

test('survives a client that disconnects as its answer arrives', async () => {
  const service = await behind((_request, response) => void response.end('here'));
  const server = createGateway(async () => ({ port: service, hold: () => () => {} }));
  const port = await start(server);
  const client = send({ host: '127.0.0.1', port, path: '/goes' }).on('error', () => {});
  client.end();
  const [, response] = (await once(server, 'request')) as [IncomingMessage, ServerResponse];
  // Published right before the gateway receives the response.
  const channel = 'http.client.response.finish';
  const leave = () => void response.destroy();
  subscribe(channel, leave);
  await new Promise((resolve) => client.on('close', resolve));
  unsubscribe(channel, leave);
  expect((await ask({ port })).body).toBe('here');
});

test('delivers an answer sent before the whole body was read, and keeps the connection', async () => {
  const service = await behind((_request, response) => void response.writeHead(413).end('too large'));
  const port = await gateway(async () => service);
  const client = connect(port, '127.0.0.1');
  let seen = '';
  client.setEncoding('utf8').on('data', (chunk: string) => (seen += chunk));
  client.write('POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n');
  await expect.poll(() => seen).toMatch(/^HTTP\/1\.1 413[^]*too large/);
  seen = '';
  client.write('x'.repeat(4_000_000));
  client.write('GET /again HTTP/1.1\r\nHost: x\r\n\r\n');
  await expect.poll(() => seen, { timeout: 5_000 }).toMatch(/^HTTP\/1\.1 413[^]*too large/);
  client.destroy();
});

test('passes a stream on as it is written, without holding the process that writes it', async () => {
  const written = Promise.withResolvers<ServerResponse>();
  const service = await behind((_request, response) => {
    response.write('first');
    written.resolve(response);
  });
  const holds: string[] = [];
  const serving = async () => ({
    port: service,
    hold: () => {
      holds.push('held');
      return () => void holds.push('released');
    },
  });
  const port = await start(createGateway(serving));
  const request = send({ host: '127.0.0.1', port, agent: false }).end();
  const [answer] = (await once(request, 'response')) as [IncomingMessage];
  expect(String((await once(answer, 'data'))[0])).toBe('first');
  expect(holds).toEqual(['held', 'released']);
  const response = await written.promise;
  response.end('last');
  expect(await text(answer)).toContain('last');
  await sleep(50);
  expect(holds).toEqual(['held', 'released']);
});
