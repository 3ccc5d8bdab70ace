// Requests from a page of another site, open in a developer's browser, must have no effect.
import { createServer } from 'node:http';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import type { Browser } from 'playwright-core';
import { chromium } from 'playwright-core';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ask, post, type RunningService } from '../../../tests/support/start-service.ts';
import { connect, startApp, startProvider } from '../../../tests/support/app-and-provider.ts';
import { findChromium } from './browser.ts';

let provider: RunningService;
let app: RunningService;
let browser: Browser;
/** The URL of the other site. Every name resolves to loopback here, as an attacker's name server could do. */
let evil: string;
const site = createServer(
  (_request, response) => void response.setHeader('Content-Type', 'text/html').end('evil'),
);

beforeAll(async () => {
  provider = await startProvider();
  app = await startApp(provider);
  site.listen(0, '127.0.0.1');
  await once(site, 'listening');
  evil = `http://evil.example:${(site.address() as AddressInfo).port}/`;
  const args = ['--host-resolver-rules=MAP * 127.0.0.1'];
  if (process.getuid?.() === 0) args.push('--no-sandbox');
  browser = await chromium.launch({ executablePath: findChromium()!, args });
});
afterAll(async () => {
  await browser.close();
  site.close();
  await app[Symbol.asyncDispose]();
  await provider[Symbol.asyncDispose]();
});

/** Posts to `url` from `page` without CORS, as a form would. Returns the type and status of the answer. */
async function postFrom(page: string, url: string, body: string): Promise<string> {
  const context = await browser.newContext();
  try {
    const tab = await context.newPage();
    await tab.goto(page);
    const script = `fetch(${JSON.stringify(url)}, {
      method: 'POST', mode: 'no-cors', body: ${JSON.stringify(body)}, headers: { 'Content-Type': 'text/plain' },
    }).then((answer) => answer.type + ' ' + answer.status, () => 'failed')`;
    return await tab.evaluate<string>(script);
  } finally {
    await context.close();
  }
}

const named = (url: string, name: string) => url.replace('127.0.0.1', name);

async function charges(): Promise<number> {
  await using database = await connect(provider);
  return (await database.query('SELECT FROM payments')).rows.length;
}
const paid = async () => ((await ask(`${app.url}/invoices?status=paid`)).body as unknown[]).length;

// app.lan is not a name of loopback, so Chromium sends no Sec-Fetch-Site there: only Origin tells the site.
test.each(['localhost', '127.0.0.1', 'app.lan', 'invoice-app.localhost'])(
  'a page of another site cannot pay or reset at %s',
  async (name) => {
    await post(`${app.url}/reset`);
    for (const path of ['/invoices/pay', '/rest/v1/invoices/pay']) {
      await postFrom(evil, named(`${app.url}${path}`, name), '');
      expect(await paid()).toBe(0);
    }
    await post(`${app.url}/invoices/pay`);
    await postFrom(evil, named(`${app.url}/reset`, name), '');
    expect(await paid()).toBe(3);
  },
);

test.each(['localhost', '127.0.0.1', 'provider.lan'])(
  'a page of another site cannot charge or empty the ledger at the provider as %s',
  async (name) => {
    await using database = await connect(provider);
    await database.query(
      `INSERT INTO payments (payment_id, amount, currency, outcome) VALUES ('kept', 1, 'EUR', 'charged')`,
    );
    const before = await charges();
    const payment = '{"id":"I1","value":1,"currency":"EUR"}';
    await postFrom(evil, named(`${provider.url}/payments/pay`, name), payment);
    await postFrom(evil, named(`${provider.url}/reset`, name), '');
    expect(await charges()).toBe(before);
  },
);

test('a foreign name that resolves to loopback is not served, as its pages could read invoices and pay', async () => {
  await post(`${app.url}/reset`);
  const rebound = named(app.url, 'evil.example');
  const context = await browser.newContext();
  const tab = await context.newPage();
  const answer = await tab.goto(`${rebound}/invoices`);
  expect(answer!.status()).toBe(421);
  const status = await tab.evaluate(
    `fetch('/invoices/pay', { method: 'POST' }).then(({ status }) => status)`,
  );
  expect(status).toBe(421);
  await context.close();
  expect(await paid()).toBe(0);
});

test('the page itself can pay under each name of loopback', async () => {
  for (const name of ['localhost', '127.0.0.1', 'invoice-app.localhost']) {
    const context = await browser.newContext();
    const tab = await context.newPage();
    await tab.goto(named(app.url, name));
    const status = await tab.evaluate(`fetch('/reset', { method: 'POST' })
      .then(() => fetch('/invoices/pay', { method: 'POST' })).then(({ status }) => status)`);
    expect([name, status, await paid()]).toEqual([name, 200, 3]);
    await context.close();
  }
});
