// Sends every request of the contract to the services, and compares each request and its response with the expected
// response and with the service's own /openapi.json.
import { isDeepStrictEqual } from 'node:util';
import express from 'express';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { maxWatchers } from '../../services/invoice-app/src/progress.ts';
import * as invoiceApp from '../../services/invoice-app/src/service.ts';
import * as paymentProvider from '../../services/payment-provider/src/service.ts';
import { createDatabase } from '../support/database.ts';
import { OpenApiDocument, send, type RecordedRequest } from './openapi-document.ts';
import { Issuer } from '../support/issuer.ts';
import { startService, type RunningService } from '../support/start-service.ts';
import { startApp, startProvider } from '../support/app-and-provider.ts';

/** A request and its expected response. The body is parsed if it is JSON, otherwise text. */
type Row = [RecordedRequest, status: number, body?: unknown, headers?: Record<string, string>];

interface Subject {
  service: RunningService;
  document: OpenApiDocument;
}

async function describeService(service: RunningService): Promise<Subject> {
  return { service, document: await OpenApiDocument.fetch(service.url) };
}

/** The responses received, such as `invoice-app GET /invoices 200`. */
const seen = new Set<string>();
/** The responses that the documents describe, in the same form. */
const described = new Set<string>();

/**
 * Sends the requests one after the other, and compares each response with its row and with the document.
 * @returns a line for each difference
 */
async function findDifferences({ service, document }: Subject, rows: Row[]): Promise<string[]> {
  for (const response of document.responses()) described.add(response);
  const lines: string[] = [];
  for (const row of rows) {
    const [request, status, body, headers = {}] = row;
    const response = await send(service.url, request);
    seen.add(document.nameOf(request, response));
    const found = document.findViolations(request, response);
    if (response.status !== status) found.push(`answered ${response.status}`);
    const isJson =
      response.headers.get('Content-Type')?.startsWith('application/json') && response.body !== '';
    const given: unknown = isJson ? JSON.parse(response.body) : response.body;
    if (body !== undefined && !isDeepStrictEqual(given, body)) found.push(`answered ${response.body}`);
    for (const [name, value] of Object.entries(headers)) {
      const has = response.headers.get(name);
      if (has !== value) found.push(`answered with ${name}: ${has}`);
    }
    lines.push(...found.map((line) => `${nameOf(row)}: ${line}`));
  }
  return lines;
}

const get = (path: string): RecordedRequest => ({ method: 'GET', path });
const post = (path: string, body?: unknown, headers: Record<string, string> = {}): RecordedRequest => ({
  method: 'POST',
  path,
  headers,
  ...(body !== undefined && { body: typeof body === 'string' ? body : JSON.stringify(body) }),
});

function checkAll(subject: () => Subject, rows: Row[]): void {
  // The order matters: a repeated request follows its original.
  test.each(rows.map((row) => ({ name: nameOf(row), row })))('$name', async ({ row }) => {
    expect(await findDifferences(subject(), [row])).toEqual([]);
  });
}

function nameOf([{ method, path, headers = {}, body = '' }, status]: Row): string {
  const shown = Object.keys(headers).length > 0 ? `${JSON.stringify(headers)} ${body}` : body;
  return [method, path, shown.slice(0, 120), `answers ${status}`].filter(Boolean).join(' ');
}

const error = (text: string) => ({ error: text });
const asText = { 'Content-Type': 'text/plain; charset=utf-8' };
const asJson = { 'Content-Type': 'application/json; charset=utf-8' };

describe('invoice-app', () => {
  let provider: RunningService;
  let app: Subject;
  beforeAll(async () => {
    provider = await startProvider();
    app = await describeService(await startApp(provider));
  });
  afterAll(async () => {
    await app.service[Symbol.asyncDispose]();
    await provider[Symbol.asyncDispose]();
  });
  const invoices = [
    { InvoiceId: 'I1', Value: 12.15, Currency: 'EUR', IsPaid: false },
    { InvoiceId: 'I2', Value: 10.25, Currency: 'GBP', IsPaid: false },
    { InvoiceId: 'I3', Value: 66.13, Currency: 'DKK', IsPaid: false },
  ];
  const paid = invoices.map((invoice) => ({ ...invoice, IsPaid: true }));
  const antaeus = (status: string) =>
    invoices.map(({ Value, Currency }, n) => ({
      id: n + 1,
      customerId: 1,
      amount: { value: Value, currency: Currency },
      status,
    }));

  /** Sets Cache-Control because fetch would add `no-cache` itself, which rules out a 304. */
  const conditional = { 'If-None-Match': '*', 'Cache-Control': 'max-age=0' };

  checkAll(
    () => app,
    [
      [get('/invoices'), 200, invoices, asJson],
      [{ method: 'HEAD', path: '/invoices' }, 200, '', asJson],
      [get('/invoices?status=unpaid&limit=1&after=I1'), 200, [invoices[1]]],
      [get('/invoices?status=paid'), 200, []],
      [get('/invoices?status=open'), 400, error('status must be paid or unpaid, not "open"')],
      [get('/invoices?limit=0'), 400, error('limit must be a whole number from 1 to 1000000, not "0"')],
      [get('/invoices?after=1'), 400, error('after must be the id of an invoice, such as I1, not "1"')],
      [get('/rest/health'), 200, 'ok', asJson],
      [get('/rest/v1/invoices'), 200, antaeus('PENDING'), asJson],
      [get('/rest/v1/invoices/1'), 200, antaeus('PENDING')[0], asJson],
      [get('/rest/v1/invoices/4'), 404, 'not found', asJson],
      [get('/rest/v1/invoices/abc'), 404, 'not found', asJson],
      [get('/rest/v1/invoices/%ff'), 400, error("Failed to decode param '%ff'")],
      [
        get('/rest/v1/customers'),
        200,
        [
          { id: 1, currency: 'EUR' },
          { id: 2, currency: 'DKK' },
        ],
        asJson,
      ],
      [get('/rest/v1/customers/1'), 200, { id: 1, currency: 'EUR' }, asJson],
      [get('/rest/v1/customers/3'), 404, 'not found', asJson],
      [get('/rest/v1/customers/%ff'), 400, error("Failed to decode param '%ff'")],
      [post('/invoices/pay'), 200, {}, asJson],
      [get('/invoices'), 200, paid],
      [get('/rest/v1/invoices'), 200, antaeus('PAID')],
      [post('/invoices/pay', '{}', { 'Content-Type': 'application/x-www-form-urlencoded' }), 200, {}],
      [post('/invoices/pay', '{"id":', { 'Content-Type': 'application/json' }), 200, {}],
      [post('/reset'), 200, {}],
      [get('/invoices'), 200, invoices],
      [post('/rest/v1/invoices/pay'), 200, true, asJson],
      [post('/rest/v1/invoices/pay', '{"id":', { 'Content-Type': 'application/json' }), 200, true],
      [get('/'), 200, undefined, { 'Content-Type': 'text/html; charset=utf-8', 'Cache-Control': 'no-cache' }],
      ...['page.js', 'page.css', 'icon.svg'].map((file): Row => [get(`/page/${file}`), 200]),
      ...['/', '/page/page.js'].map((path): Row => [{ ...get(path), headers: conditional }, 304, '']),
      [get('/page/none.js'), 404, error('not found')],
      [get('/page/%ff'), 400, error("Failed to decode param '%ff'")],
      [get('/progress'), 200, undefined, { 'Content-Type': 'text/event-stream; charset=utf-8' }],
      [get('/rows?show=paid&limit=1'), 200, undefined, asJson],
      [get('/rows?show=open'), 400],
      ...['/invoices/pay', '/rest/v1/invoices/pay', '/reset'].map((path): Row => [
        post(path, undefined, { 'Sec-Fetch-Site': 'cross-site' }),
        403,
        error('cross-origin requests are not allowed'),
      ]),
      [get('/livez'), 200, 'ok', asText],
      [get('/startupz'), 200, 'ok', asText],
      [get('/readyz'), 200, 'ok', asText],
      [get('/openapi.json'), 200, undefined, asJson],
      [{ method: 'HEAD', path: '/openapi.json' }, 200, '', asJson],
      [
        { ...get('/version'), headers: { 'X-Request-Id': 'mine' } },
        200,
        {
          service: 'invoice-app',
          source: 'the code under test',
          instance: 'test',
          provider: { service: 'payment-provider', source: 'the code under test', instance: 'test' },
        },
        { ...asJson, 'X-Request-Id': 'mine' },
      ],
      [get('/nowhere'), 404, error('not found'), asJson],
      [get('/rest/v1/nowhere'), 404, error('not found')],
      [
        { method: 'DELETE', path: '/invoices' },
        405,
        error('method not allowed, only GET, HEAD'),
        { Allow: 'GET, HEAD' },
      ],
      [get('/invoices/pay'), 405, error('method not allowed, only POST'), { Allow: 'POST' }],
      [get('/rest/v1/invoices/pay'), 405, error('method not allowed, only POST'), { Allow: 'POST' }],
      [post('/openapi.json'), 405, error('method not allowed, only GET, HEAD'), { Allow: 'GET, HEAD' }],
      [post('/livez'), 405, error('method not allowed, only GET, HEAD'), { Allow: 'GET, HEAD' }],
    ],
  );

  test('answers 200 {} and false when every payment is declined', async () => {
    await using declining = await startService(paymentProvider, { FAILURE_RATE: '1' });
    await using unlucky = await startApp(declining);
    const rows: Row[] = [
      [post('/invoices/pay'), 200, {}],
      [post('/rest/v1/invoices/pay'), 200, false],
      [get('/invoices'), 200, invoices],
    ];
    expect(await findDifferences(await describeService(unlucky), rows)).toEqual([]);
  });

  test('answers 502, false and null while the provider is down', async () => {
    await using unlucky = await startApp({ url: 'http://127.0.0.1:1' });
    const message = 'the payment provider gave no definite answer';
    const self = { service: 'invoice-app', source: 'the code under test', instance: 'test', provider: null };
    const rows: Row[] = [
      [post('/invoices/pay'), 502, { error: message, paid: 0, declined: 0, refused: 0, unknown: 3 }],
      [post('/rest/v1/invoices/pay'), 200, false],
      [post('/reset'), 502],
      [get('/version'), 200, self],
    ];
    expect(await findDifferences(await describeService(unlucky), rows)).toEqual([]);
  });

  test('answers 503 without its database, except on routes that need none', { timeout: 60_000 }, async () => {
    const database = await createDatabase();
    await using lonely = await startApp(provider, { DATABASE_URL: database.url });
    const subject = await describeService(lonely);
    await database.drop();
    const lists = ['/invoices', '/rest/v1/invoices', '/rest/v1/customers', '/rows'];
    const reads = [...lists, '/rest/v1/invoices/1', '/rest/v1/customers/1', '/readyz'];
    const rows: Row[] = [
      ...reads.map((path): Row => [get(path), 503]),
      ...['/invoices/pay', '/rest/v1/invoices/pay', '/reset'].map((path): Row => [post(path), 503]),
      ...['/livez', '/rest/health'].map((path): Row => [get(path), 200, 'ok']),
    ];
    expect(await findDifferences(subject, rows)).toEqual([]);
  });

  test('answers 503 to more watchers than one process accepts', async () => {
    const gone = new AbortController();
    const watch = () => fetch(`${app.service.url}/progress`, { signal: gone.signal });
    await Promise.all(Array.from({ length: maxWatchers }, watch));
    const rows: Row[] = [
      [get('/progress'), 503, error('too many watchers, try again later'), { 'Retry-After': '5' }],
    ];
    expect(await findDifferences(app, rows)).toEqual([]);
    gone.abort();
  });

  test('serves POST /reset only if ALLOW_RESET is true', async () => {
    await using strict = await startApp(provider, { ALLOW_RESET: 'false' });
    const rows: Row[] = [[post('/reset'), 404, error('not found')]];
    expect(await findDifferences(await describeService(strict), rows)).toEqual([]);
  });
});

describe('payment-provider', () => {
  let provider: Subject;
  beforeAll(async () => {
    provider = await describeService(await startProvider());
  });
  afterAll(() => provider.service[Symbol.asyncDispose]());

  const wrong = error('failed to process payment request parameters');
  const missing = (field: string) => error(`could not retrieve ${field}`);
  const keyRule = error('an idempotency key must have 1 to 255 characters');
  const mismatch = error('this idempotency key was used for another payment');
  const payment = { id: 'I1', value: 12.15, currency: 'EUR' };
  const pay = (body?: unknown, headers?: Record<string, string>) => post('/payments/pay', body, headers);
  const keyed = (key: string) => ({ 'Idempotency-Key': key });
  const element = (id: string, more = {}) => ({ ...payment, id, idempotencyKey: `of ${id}`, ...more });
  const antaeus = { currency: 'USD', value: 301.99, customer_id: 1 };
  const epoch = '0197a5f0-0000-7000-8000-000000000001';
  const retired = error('the data of this payment has been reset');
  const payAntaeus = (body?: unknown, headers?: Record<string, string>) =>
    post('/rest/v1/payments', body, headers);
  const charged: Row[] = [
    [pay(payment), 200, { id: 'I1' }, asJson],
    ...['application/json', 'text/plain', 'application/x-www-form-urlencoded', 'nonsense'].map(
      (type): Row => [pay(payment, { 'Content-Type': type }), 200, { id: 'I1' }],
    ),
    [pay('{"ID":"I1","VaLuE":1,"CURRENCY":"EUR"}'), 200, { id: 'I1' }],
    [pay({ ...payment, note: { id: 7 }, idempotencyKey: 5 }), 200, { id: 'I1' }],
    [pay({ ...payment, value: -1 }), 200, { id: 'I1' }],
    [pay({ ...payment, currency: 'shells' }), 200, { id: 'I1' }],
    [pay({ ...payment, value: 1.005, currency: 'JPY' }), 200, { id: 'I1' }],
    [pay('{"id":"I1","value":3.4028234e38,"currency":"EUR"}'), 200, { id: 'I1' }],
    [pay('{"id":"I1","value":3.4028235677973362e38,"currency":"EUR"}'), 200, { id: 'I1' }],
  ];
  const refused: Row[] = [
    [pay(), 400, wrong, asJson],
    ...['', 'id=I1&value=1', '{"id":"I1",', '"I1"', '7'].map((body): Row => [pay(body), 400, wrong]),
    [pay({ ...payment, id: 1 }), 400, wrong],
    [pay({ ...payment, id: 'I\0' }), 400, wrong],
    [pay({ ...payment, value: '1' }), 400, wrong],
    [pay({ ...payment, currency: {} }), 400, wrong],
    [pay({ ...payment, currency: '\0' }), 400, wrong],
    [pay('{"id":"I1","value":3.5e38,"currency":"EUR"}'), 400, wrong],
    [pay('{"id":"I1","value":3.4028235677973366e38,"currency":"EUR"}'), 400, wrong],
    [pay('{"id":"I1","value":1e999,"currency":"EUR"}'), 400, wrong],
    [pay({ value: '1' }), 400, wrong],
    [pay({ ID: 5, value: 0 }), 400, wrong],
    ...[null, {}, { ...payment, id: '' }, { ...payment, id: null }, { value: 1 }].map((body): Row => [
      pay(body),
      400,
      missing('payment id'),
    ]),
    ...[{ id: 'I1' }, { ...payment, value: 0 }, { ...payment, value: null }].map((body): Row => [
      pay(body),
      400,
      missing('payment value'),
    ]),
    [pay('{"id":"I1","value":7.1e-46,"currency":"EUR"}'), 400, missing('payment value')],
    [pay({ ...payment, value: 0.00004 }), 400, missing('payment value')],
    [pay({ ...payment, id: 'x'.repeat(256) }), 400, error('a payment id must have at most 255 characters')],
    [pay('{"id":"I\\ud800","value":1,"currency":"EUR"}'), 400, wrong],
    ...[
      { id: 'I1', value: 1 },
      { ...payment, currency: '' },
      { ...payment, currency: null },
    ].map((body): Row => [pay(body), 400, missing('payment currency')]),
    [pay(payment, keyed('""')), 400, keyRule],
    [pay(payment, keyed('x'.repeat(256))), 400, keyRule],
    [pay(Array.from({ length: 1_001 }, (_, n) => element(`I${n}`))), 400],
    [
      pay(JSON.stringify(payment).padEnd(512 * 1_024 + 1)),
      413,
      error('request body too large, at most 512 kB'),
    ],
    [pay(payment, { 'Content-Encoding': 'nonsense' }), 415],
  ];
  const repeated: Row[] = [
    [pay(payment, keyed('a')), 200, { id: 'I1' }],
    [pay(payment, keyed('"a"')), 200, { id: 'I1' }, { 'Idempotency-Hit': 'true' }],
    [pay({ ...payment, id: 'I2' }, keyed('a')), 422, mismatch],
    [pay({ ...payment, value: 12.16 }, keyed('a')), 422, mismatch],
    [pay({ ...payment, currency: 'GBP' }, keyed('a')), 422, mismatch],
    [pay(payment, keyed('x'.repeat(255))), 200, { id: 'I1' }],
    [pay([]), 200, []],
    [
      pay([element('I1'), element('I2')]),
      200,
      [
        { status: 200, id: 'I1' },
        { status: 200, id: 'I2' },
      ],
    ],
    [
      pay([
        element('I2'),
        element('I2', { value: 1 }),
        null,
        'I4',
        { ...payment, id: 'I5' },
        element('I6', { idempotencyKey: '' }),
        element('I7', { value: 0 }),
        element('I1', { value: 1 }),
      ]),
      200,
      [
        { status: 200, id: 'I2', repeated: true },
        { status: 409, id: 'I2', ...error('the first request with this idempotency key is still in flight') },
        { status: 400, ...missing('payment id') },
        { status: 400, ...wrong },
        { status: 400, id: 'I5', ...missing('idempotency key') },
        { status: 400, id: 'I6', ...keyRule },
        { status: 400, id: 'I7', ...missing('payment value') },
        { status: 422, id: 'I1', ...mismatch },
      ],
    ],
    [pay([{ ...payment, idempotencyKey: null, IDEMPOTENCYKEY: 'b' }]), 200, [{ status: 200, id: 'I1' }]],
  ];
  const rest: Row[] = [
    [payAntaeus(antaeus), 200, { result: true }, asJson],
    [payAntaeus({ ...antaeus, currency: {} }), 200, { result: true }],
    [payAntaeus({ ...antaeus, currency: null }), 200, { result: true }],
    [payAntaeus('{"Value":1,"CUSTOMER_ID":"7"}'), 200, { result: true }],
    [payAntaeus({ ...antaeus, value: 0 }), 200, { result: true }],
    [payAntaeus(antaeus, keyed('antaeus')), 200, { result: true }],
    [payAntaeus(antaeus, keyed('antaeus')), 200, { result: true }, { 'Idempotency-Hit': 'true' }],
    [payAntaeus({ ...antaeus, value: 1 }, keyed('antaeus')), 422, mismatch],
    ...[null, [], { ...antaeus, value: '1' }, { value: 1 }, { customer_id: 1 }].map((body): Row => [
      payAntaeus(body),
      400,
      wrong,
    ]),
    [payAntaeus({ ...antaeus, currency: '' }), 400, wrong],
    [payAntaeus(JSON.stringify(antaeus).padEnd(512 * 1_024 + 1)), 413],
    [payAntaeus(antaeus, { 'Content-Encoding': 'nonsense' }), 415],
    [get('/version'), 200, { service: 'payment-provider', source: 'the code under test', instance: 'test' }],
    [get('/livez'), 200, 'ok', asText],
    [get('/startupz'), 200, 'ok', asText],
    [get('/readyz'), 200, 'ok', asText],
    [get('/openapi.json'), 200, undefined, asJson],
    [get('/nowhere'), 404, error('not found')],
    [get('/payments/pay'), 405, error('method not allowed, only POST'), { Allow: 'POST' }],
    [post('/version'), 405, error('method not allowed, only GET, HEAD'), { Allow: 'GET, HEAD' }],
    [post('/reset'), 200, {}],
    [post('/reset', undefined, { 'Ledger-Epoch': 'first' }), 400, error('Ledger-Epoch must be a UUID')],
    [pay(payment, { 'Ledger-Epoch': 'first' }), 400, error('Ledger-Epoch must be a UUID')],
    [pay(payment, { 'Ledger-Epoch': epoch }), 200, { id: 'I1' }],
    [post('/reset', undefined, { 'Ledger-Epoch': epoch }), 200, {}],
    [pay(payment, { 'Ledger-Epoch': epoch }), 410, retired],
    [pay([element('I1')], { 'Ledger-Epoch': epoch }), 410, retired],
    [payAntaeus(antaeus, { 'Ledger-Epoch': epoch }), 410, retired],
    [pay(payment), 200, { id: 'I1' }],
  ];
  checkAll(() => provider, [...charged, ...refused, ...repeated, ...rest]);

  test('answers a decline with 402, with false, and with a 402 outcome in an array', async () => {
    await using declining = await startService(paymentProvider, { FAILURE_RATE: '1' });
    const declined = error('payment declined');
    const rows: Row[] = [
      [pay(payment, keyed('a')), 402, declined],
      [pay(payment, keyed('a')), 402, declined, { 'Idempotency-Hit': 'true' }],
      [payAntaeus(antaeus), 200, { result: false }],
      [pay([element('I1')]), 200, [{ status: 402, id: 'I1', ...declined }]],
      [pay([element('I1')]), 200, [{ status: 402, id: 'I1', ...declined, repeated: true }]],
      [post('/reset'), 404, error('not found')],
    ];
    expect(await findDifferences(await describeService(declining), rows)).toEqual([]);
  });

  test('answers 409 while the first request with the key is in flight', async () => {
    const allowed = Promise.withResolvers<void>();
    const step = async <T>(name: string, work: () => Promise<T>) => {
      if (name === 'store') await allowed.promise;
      return work();
    };
    await using slow = await startService(paymentProvider, {}, { step });
    const subject = await describeService(slow);
    const body = error('the first request with this idempotency key is still in flight');
    for (const ask of [pay(payment, keyed('a')), payAntaeus(antaeus, keyed('b'))]) {
      // Either request may arrive first. The later one must be answered immediately.
      const both = [send(slow.url, ask), send(slow.url, ask)];
      const { status } = await Promise.race(both);
      expect(status).toBe(409);
      expect(await findDifferences(subject, [[ask, 409, body, { 'Retry-After': '1' }]])).toEqual([]);
    }
    allowed.resolve();
  });

  test('answers an injected fault with 500', async () => {
    await using failing = await startService(paymentProvider, { FAULTS: 'fail=1' });
    const rows: Row[] = [[pay(payment), 500, error('failed on purpose')]];
    expect(await findDifferences(await describeService(failing), rows)).toEqual([]);
  });

  test('answers 503 without its database', { timeout: 60_000 }, async () => {
    const database = await createDatabase();
    await using lonely = await startService(paymentProvider, {
      DATABASE_URL: database.url,
      ALLOW_RESET: 'true',
    });
    const subject = await describeService(lonely);
    await database.drop();
    const asks = [get('/readyz'), pay(payment), payAntaeus(antaeus), post('/reset')];
    const rows = asks.map((ask): Row => [ask, 503]);
    expect(await findDifferences(subject, rows)).toEqual([]);
  });

  test('requires a token: 401 if it is missing, 403 for another subject, 503 without the keys', async () => {
    await using issuer = await Issuer.start();
    await using strict = await startService(paymentProvider, { ...issuer.env, ALLOW_RESET: 'true' });
    const subject = await describeService(strict);
    const bearer = (token: string) => ({ Authorization: `Bearer ${token}` });
    const stranger = await issuer.sign({ sub: 'system:serviceaccount:other:other' });
    const good = await issuer.sign();
    const rows = (given: Record<string, string>, status: number, body?: unknown, headers = {}): Row[] =>
      [pay(payment, given), payAntaeus(antaeus, given), post('/reset', undefined, given)].map((ask) => [
        ask,
        status,
        body,
        headers,
      ]);
    const noKeys = rows(bearer(good), 503, error('no token can be checked'), { 'Retry-After': '1' });
    issuer.fault = { status: 500, body: '' };
    expect(await findDifferences(subject, noKeys)).toEqual([]);
    issuer.fault = undefined;
    const others = [
      ...rows({}, 401, error('unauthorized'), { 'WWW-Authenticate': 'Bearer' }),
      ...rows(bearer(stranger), 403, error('forbidden')),
      ...rows(bearer(good), 200),
      ...['/version', '/openapi.json', '/startupz', '/livez', '/readyz'].map((path): Row => [get(path), 200]),
    ];
    expect(await findDifferences(subject, others)).toEqual([]);
  });
});

test('the requests above received every response that is described', () => {
  // A 500 is a fault of the service. Only one kind of request can be made to fail with it.
  const unseen = [...described].filter((answer) => !seen.has(answer) && !answer.endsWith(' 500'));
  expect(unseen).toEqual([]);
  expect([...seen].filter((answer) => answer.endsWith(' 500'))).toHaveLength(1);
});

describe('the document describes exactly the routes that are served', () => {
  const methods = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'];

  test.each([
    { name: 'invoice-app', module: invoiceApp, allowReset: 'true' },
    { name: 'invoice-app', module: invoiceApp, allowReset: 'false' },
    { name: 'payment-provider', module: paymentProvider, allowReset: 'true' },
    { name: 'payment-provider', module: paymentProvider, allowReset: 'false' },
  ])('$name, ALLOW_RESET=$allowReset', async ({ module, allowReset }) => {
    // Every Express method that adds a path calls one of these.
    const routes = vi.spyOn(express.application, 'route');
    const uses = vi.spyOn(express.application, 'use');
    try {
      await using service = await startService(module, { ALLOW_RESET: allowReset });
      const { json } = await OpenApiDocument.fetch(service.url);
      const paths: Record<string, object> = json.paths;
      const served = routes.mock.calls.map(([path]) => String(path).replaceAll(/:(\w+)/g, '{$1}'));
      expect(Object.keys(paths).toSorted()).toEqual(served.toSorted());
      // The spies do not see the paths inside a router or a static folder, so there must be none.
      const used = (uses.mock.calls as unknown[][]).flat();
      const names = used.map((each) => (typeof each === 'function' ? each.name : String(each)));
      expect(names.filter((name) => /^(router|serveStatic|\/)/.test(name))).toEqual([]);
      expect(Object.hasOwn(paths, '/reset')).toBe(allowReset === 'true');
      for (const [template, item] of Object.entries(paths)) {
        for (const method of methods) {
          const isDescribed = Object.hasOwn(item, method.replace('HEAD', 'GET').toLowerCase());
          const response = await fetch(service.url + template.replaceAll(/\{\w+\}/g, '1'), { method });
          await response.body?.cancel();
          expect([method, template, response.status === 405]).toEqual([method, template, !isDescribed]);
        }
      }
    } finally {
      routes.mockRestore();
      uses.mockRestore();
    }
  });
});
