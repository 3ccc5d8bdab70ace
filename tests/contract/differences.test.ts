import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { RunningService } from '../support/start-service.ts';
import { startApp, startProvider } from '../support/app-and-provider.ts';

const page = readFileSync(join(import.meta.dirname, '../../docs/differences.md'), 'utf8');
/** Returns the table rows below a heading: method, path, and the status that the page claims for payloop. */
const rowsOf = (heading: string) => {
  const [, section = ''] = page.split(`## ${heading}\n`);
  const rows = section.split('\n## ')[0]!.matchAll(/^\| `([A-Z]+) (\S+)` \| [^|]+ \| (\d{3}) \|/gm);
  return [...rows].map(([, method = '', path = '', status]) => ({ method, path, status: Number(status) }));
};

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

const body = '{"id":"<I&1>","value":1,"currency":"EUR"}';
const send = ({ url }: RunningService, method: string, path: string) =>
  fetch(url + path, { method, redirect: 'manual', ...(method === 'POST' && { body }) });

describe('docs/differences.md is right about', () => {
  test('the routes of invoice-app', async () => {
    const rows = rowsOf('Routes of invoice-app');
    expect(rows).toHaveLength(9);
    for (const { method, path, status } of rows) {
      expect([method, path, (await send(app, method, path)).status]).toEqual([method, path, status]);
    }
  });

  test('the routes of payment-provider', async () => {
    const rows = rowsOf('Routes of payment-provider');
    expect(rows).toHaveLength(2);
    for (const { method, path, status } of rows) {
      expect([method, path, (await send(provider, method, path)).status]).toEqual([method, path, status]);
    }
  });

  test('responses: lists have no Content-Length, and JSON escapes only the necessary characters', async () => {
    const list = await send(app, 'GET', '/invoices');
    expect(list.headers.get('Content-Length')).toBeNull();
    expect(list.headers.get('Transfer-Encoding')).toBe('chunked');
    expect(await (await send(provider, 'POST', '/payments/pay')).text()).toBe('{"id":"<I&1>"}');
  });
});
