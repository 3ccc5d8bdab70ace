// Checks that the websites a developer visits cannot pay, reset or read through either service.
import { once } from 'node:events';
import { request, type OutgoingHttpHeaders } from 'node:http';
import { connect } from 'node:net';
import { text } from 'node:stream/consumers';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createGateway } from '../../libraries/chassis/dev/gateway.ts';
import { startUnready, type RunningService } from '../support/start-service.ts';
import { startApp, startProvider } from '../support/app-and-provider.ts';
import * as invoiceApp from '../../services/invoice-app/src/service.ts';
import type { AddressInfo } from 'node:net';

let provider: RunningService;
let app: RunningService;
beforeAll(async () => {
  provider = await startProvider();
  app = await startApp(provider);
});
afterAll(async () => {
  await app[Symbol.asyncDispose]();
  await provider[Symbol.asyncDispose]();
});

/** Sends a request with any Host header, which fetch does not allow. */
async function send(url: string, method: string, headers: OutgoingHttpHeaders, body = '') {
  const sent = request(url, { method, headers, agent: false });
  sent.end(body);
  const [answer] = await once(sent, 'response');
  return { status: answer.statusCode as number, body: await text(answer) };
}

test('sends the headers for displayed documents with GET and HEAD only', async () => {
  const shown = [
    'Content-Security-Policy',
    'Cross-Origin-Opener-Policy',
    'Cross-Origin-Resource-Policy',
    'Referrer-Policy',
  ];
  for (const { url } of [app, provider]) {
    for (const [path, method] of [
      ['/version', 'GET'],
      ['/version', 'HEAD'],
      ['/none', 'GET'],
      ['/payments/pay', 'POST'],
    ] as const) {
      const { headers } = await fetch(url + path, { method });
      expect(headers.get('X-Content-Type-Options')).toBe('nosniff');
      const has = shown.filter((name) => headers.has(name));
      expect([method, has]).toEqual([method, method === 'POST' ? [] : shown]);
    }
  }
});

const payment = '{"id":"I1","value":1,"currency":"EUR"}';
const posts = () => [
  `${app.url}/invoices/pay`,
  `${app.url}/reset`,
  `${app.url}/rest/v1/invoices/pay`,
  `${provider.url}/payments/pay`,
  `${provider.url}/rest/v1/payments`,
  `${provider.url}/reset`,
];

describe('a POST without Sec-Fetch-Site', () => {
  test.each([
    ['another site', 'http://evil.example', 'localhost:8081'],
    ['the same name at another port', 'http://localhost:3000', 'localhost:8081'],
    ['another name of loopback', 'http://127.0.0.1:8081', 'localhost:8081'],
    ['a longer name', 'http://localhost:8081.evil.example', 'localhost:8081'],
    ['the default port instead', 'http://localhost', 'localhost:8081'],
    ['a frame with an opaque origin', 'null', 'localhost:8081'],
    ['a file', 'file://', 'localhost'],
    ['an empty origin', '', 'localhost:8081'],
    ['an origin that is not a URL', 'localhost:8081', 'localhost:8081'],
  ])('gets 403 from %s: Origin %j, Host %j', async (_name, origin, host) => {
    for (const url of posts()) {
      expect(await send(url, 'POST', { Origin: origin, Host: host }, payment)).toEqual({
        status: 403,
        body: '{"error":"cross-origin requests are not allowed"}',
      });
    }
  });

  test.each([
    ['http://localhost:8081', 'localhost:8081'],
    ['https://invoice-app.localhost:8443', 'invoice-app.localhost:8443'],
    ['http://localhost', 'localhost:80'],
    ['https://localhost', 'localhost:443'],
    ['http://[::1]:8081', '[::1]:8081'],
    ['http://LOCALHOST:8081', 'localhost:8081'],
  ])('is served from the same origin: Origin %j, Host %j', async (origin, host) => {
    const { status } = await send(`${app.url}/invoices/pay`, 'POST', { Origin: origin, Host: host });
    expect(status).toBe(200);
  });

  test('is served without an Origin, as from a client that is not a browser', async () => {
    expect((await send(`${app.url}/invoices/pay`, 'POST', {})).status).toBe(200);
  });

  test('gets 403 with an Origin but no Host to compare it with', async () => {
    const { hostname, port } = new URL(app.url);
    const socket = connect(Number(port), hostname);
    socket.write('POST /reset HTTP/1.0\r\nOrigin: http://evil.example\r\n\r\n');
    expect(await text(socket)).toMatch(/^HTTP\/1.1 403 /);
  });
});

test('Sec-Fetch-Site takes precedence over Origin', async () => {
  const same = { Origin: 'http://localhost:8081', Host: 'localhost:8081' };
  for (const url of posts()) {
    const refused = await send(url, 'POST', { ...same, 'Sec-Fetch-Site': 'cross-site' }, payment);
    expect(refused.status).toBe(403);
  }
  const other = { Origin: 'http://evil.example', Host: 'localhost:8081', 'Sec-Fetch-Site': 'same-origin' };
  expect((await send(`${app.url}/invoices/pay`, 'POST', other)).status).toBe(200);
});

test.each(['PUT', 'DELETE', 'PATCH', 'OPTIONS'])('%s from another origin gets 403 too', async (method) => {
  const { status } = await send(`${app.url}/invoices`, method, { Origin: 'http://evil.example' });
  expect(status).toBe(403);
});

const everyName = (service: string) =>
  ['localhost', 'x.localhost', '127.0.0.1', '[::1]', '10.244.0.7', '[fd00::7]'].concat(
    ['', `.${service}`, `.${service}.svc`, `.${service}.svc.cluster.local`].map((rest) => service + rest),
  );
const wrongNames = [
  'evil.example',
  'app.lan',
  'localhost.evil.example',
  'evillocalhost',
  '127.0.0.1.nip.io',
  'invoice-app.evil.example',
  'invoice-app.app',
  'payment-provider.dev',
  'localhost@evil.example',
  'a b',
];

describe('the Host header in development', () => {
  test.each(['invoice-app', 'payment-provider'])(
    '%s accepts loopback, IP addresses and its own names',
    async (name) => {
      const { url, metricsUrl } = name === 'invoice-app' ? app : provider;
      for (const host of everyName(name).flatMap((each) => [each, `${each}:8081`, each.toUpperCase()])) {
        expect([host, (await send(`${url}/version`, 'GET', { Host: host })).status]).toEqual([host, 200]);
        expect([host, (await send(metricsUrl, 'GET', { Host: host })).status]).toEqual([host, 200]);
      }
    },
  );

  test.each(wrongNames)('%s gets 421 on every route', async (host) => {
    for (const url of [...posts(), `${app.url}/invoices`, `${app.url}/`]) {
      for (const method of ['GET', 'POST']) {
        expect(await send(url, method, { Host: host }, method === 'POST' ? payment : '')).toEqual({
          status: 421,
          body: JSON.stringify({
            error: `this service does not accept the host ${host}: in development, use localhost`,
          }),
        });
      }
    }
    expect((await send(app.metricsUrl, 'GET', { Host: host })).status).toBe(421);
    expect((await send(provider.metricsUrl, 'GET', { Host: host })).status).toBe(421);
  });

  test('a service does not accept the name of the other one', async () => {
    expect((await send(`${app.url}/version`, 'GET', { Host: 'payment-provider' })).status).toBe(421);
  });

  test('the development gateway forwards Host and Origin', async () => {
    const port = Number(new URL(app.url).port);
    const gateway = createGateway(async () => ({ port, hold: () => () => {} })).listen(0, '127.0.0.1');
    await once(gateway, 'listening');
    const url = `http://127.0.0.1:${(gateway.address() as AddressInfo).port}/invoices/pay`;
    expect((await send(url, 'POST', { Host: 'evil.example' })).status).toBe(421);
    expect((await send(url, 'POST', { Origin: 'http://evil.example' })).status).toBe(403);
    expect((await send(url, 'POST', {})).status).toBe(200);
    gateway.close();
  });
});

test('production serves every host name and still rejects other origins', async () => {
  await using production = await startApp(provider, { ENVIRONMENT: 'prod', ALLOW_RESET: 'false' });
  const host = { Host: 'invoices.example' };
  expect((await send(`${production.url}/version`, 'GET', host)).status).toBe(200);
  const { status } = await send(`${production.url}/invoices/pay`, 'POST', {
    ...host,
    Origin: 'https://evil.example',
  });
  expect(status).toBe(403);
});

test('probes are answered under any host name, because they reveal nothing', async () => {
  const unready = await startUnready(invoiceApp);
  expect((await send(`${unready.url}/livez`, 'GET', { Host: 'any.example' })).status).toBe(200);
  await unready.stop();
});
