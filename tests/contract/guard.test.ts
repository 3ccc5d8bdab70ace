// What keeps the sites that a developer visits from paying, resetting or reading, in both services.
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

/** fetch allows no Host of one's own. */
async function send(url: string, method: string, headers: OutgoingHttpHeaders, body = '') {
  const sent = request(url, { method, headers, agent: false });
  sent.end(body);
  const [answer] = await once(sent, 'response');
  return { status: answer.statusCode as number, body: await text(answer) };
}

test('what only matters where a browser shows an answer is with GET and HEAD alone', async () => {
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
  { url: `${app.url}/invoices/pay`, name: 'invoice-app' },
  { url: `${app.url}/reset`, name: 'invoice-app' },
  { url: `${app.url}/rest/v1/invoices/pay`, name: 'invoice-app' },
  { url: `${provider.url}/payments/pay`, name: 'payment-provider' },
  { url: `${provider.url}/rest/v1/payments`, name: 'payment-provider' },
  { url: `${provider.url}/reset`, name: 'payment-provider' },
];

describe('a POST without Sec-Fetch-Site', () => {
  test.each([
    ['another site', 'http://evil.example', 'localhost:8081'],
    ['the same name at another port', 'http://localhost:3000', 'localhost:8081'],
    ['another name of loopback', 'http://127.0.0.1:8081', 'localhost:8081'],
    ['a longer name', 'http://localhost:8081.evil.example', 'localhost:8081'],
    ['the default port instead', 'http://localhost', 'localhost:8081'],
    ['a frame without an origin', 'null', 'localhost:8081'],
    ['a file', 'file://', 'localhost'],
    ['no origin at all', '', 'localhost:8081'],
    ['what is no URL', 'localhost:8081', 'localhost:8081'],
  ])('from %s is 403: Origin %j, Host %j', async (_name, origin, host) => {
    for (const { url } of posts()) {
      expect(await send(url, 'POST', { Origin: origin, Host: host }, payment)).toEqual({
        status: 403,
        body: '{"error":"cross-site requests are not allowed"}',
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
  ])('of the same origin is served: Origin %j, Host %j', async (origin, host) => {
    const { status } = await send(`${app.url}/invoices/pay`, 'POST', { Origin: origin, Host: host });
    expect(status).toBe(200);
  });

  test('of no browser is served', async () => {
    expect((await send(`${app.url}/invoices/pay`, 'POST', {})).status).toBe(200);
  });

  test('of an origin, and of no Host to compare it with, is 403', async () => {
    const { hostname, port } = new URL(app.url);
    const socket = connect(Number(port), hostname);
    socket.write('POST /reset HTTP/1.0\r\nOrigin: http://evil.example\r\n\r\n');
    expect(await text(socket)).toMatch(/^HTTP\/1.1 403 /);
  });
});

test('what the browser says counts more than Origin', async () => {
  const same = { Origin: 'http://localhost:8081', Host: 'localhost:8081' };
  for (const { url } of posts()) {
    const refused = await send(url, 'POST', { ...same, 'Sec-Fetch-Site': 'cross-site' }, payment);
    expect(refused.status).toBe(403);
  }
  const other = { Origin: 'http://evil.example', Host: 'localhost:8081', 'Sec-Fetch-Site': 'same-origin' };
  expect((await send(`${app.url}/invoices/pay`, 'POST', other)).status).toBe(200);
});

test.each(['PUT', 'DELETE', 'PATCH', 'OPTIONS'])('%s from another site is 403 too', async (method) => {
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

describe('in development, as Host', () => {
  test.each(['invoice-app', 'payment-provider'])(
    '%s takes loopback, addresses and its own names',
    async (name) => {
      const { url, metricsUrl } = name === 'invoice-app' ? app : provider;
      for (const host of everyName(name).flatMap((each) => [each, `${each}:8081`, each.toUpperCase()])) {
        expect([host, (await send(`${url}/version`, 'GET', { Host: host })).status]).toEqual([host, 200]);
        expect([host, (await send(metricsUrl, 'GET', { Host: host })).status]).toEqual([host, 200]);
      }
    },
  );

  test.each(wrongNames)('%s is 421, whatever is asked for', async (host) => {
    for (const { url } of [...posts(), { url: `${app.url}/invoices` }, { url: `${app.url}/` }]) {
      for (const method of ['GET', 'POST']) {
        expect(await send(url, method, { Host: host }, method === 'POST' ? payment : '')).toEqual({
          status: 421,
          body: JSON.stringify({ error: `not served as ${host}: in development, use localhost` }),
        });
      }
    }
    expect((await send(app.metricsUrl, 'GET', { Host: host })).status).toBe(421);
    expect((await send(provider.metricsUrl, 'GET', { Host: host })).status).toBe(421);
  });

  test('a service does not take the other one’s name', async () => {
    expect((await send(`${app.url}/version`, 'GET', { Host: 'payment-provider' })).status).toBe(421);
  });

  test('the gateway of development passes on which name was asked for', async () => {
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

test('in production every name is served, and other sites are kept out all the same', async () => {
  await using production = await startApp(provider, { ENVIRONMENT: 'prod', ALLOW_RESET: 'false' });
  const host = { Host: 'invoices.example' };
  expect((await send(`${production.url}/version`, 'GET', host)).status).toBe(200);
  const { status } = await send(`${production.url}/invoices/pay`, 'POST', {
    ...host,
    Origin: 'https://evil.example',
  });
  expect(status).toBe(403);
});

test('probes are answered under any name, as they tell nothing', async () => {
  const unready = await startUnready(invoiceApp);
  expect((await send(`${unready.url}/livez`, 'GET', { Host: 'any.example' })).status).toBe(200);
  await unready.stop();
});
