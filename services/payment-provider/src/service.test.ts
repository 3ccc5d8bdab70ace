import { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { ask, post, startService, type RunningService } from '../../../tests/support/start-service.ts';
import * as paymentProvider from './service.ts';

let service: RunningService;
let database: Client;
beforeAll(async () => {
  service = await startService(paymentProvider, { ALLOW_RESET: 'true' });
  database = new Client({ connectionString: service.databaseUrl });
  await database.connect();
});
beforeEach(() => post(`${service.url}/reset`));
afterAll(async () => {
  await database.end();
  await service[Symbol.asyncDispose]();
});

const pay = (body: string, headers?: Record<string, string>) =>
  post(`${service.url}/payments/pay`, body, headers);
const stored = async () =>
  (await database.query('SELECT payment_id, amount, currency, outcome FROM payments ORDER BY id')).rows;

const wrongParameters = 'failed to process payment request parameters';
const noId = 'could not retrieve payment id';
const noValue = 'could not retrieve payment value';
const noCurrency = 'could not retrieve payment currency';

test('idle connections stay open longer than the 90 s of Traefik', async () => {
  const { headers } = await fetch(`${service.url}/livez`);
  expect(headers.get('keep-alive')).toBe('timeout=95');
});

describe('a payment', () => {
  test('is charged and stored in minor units', async () => {
    expect(await pay('{"id":"I1","value":12.15,"currency":"EUR"}')).toEqual({
      status: 200,
      body: { id: 'I1' },
    });
    expect(await stored()).toEqual([
      { payment_id: 'I1', amount: '1215', currency: 'EUR', outcome: 'charged' },
    ]);
  });

  test('is charged again when it is retried without an idempotency key', async () => {
    await pay('{"id":"I1","value":12.15,"currency":"EUR"}');
    await pay('{"id":"I1","value":12.15,"currency":"EUR"}');
    expect(await stored()).toHaveLength(2);
  });

  test.each([
    ['field names in any case', '{"ID":"I1","VaLuE":1,"CURRENCY":"EUR"}'],
    ['further fields', '{"id":"I1","value":1,"currency":"EUR","note":{"id":7}}'],
    ['white space around it', ' \n{"id":"I1","value":1,"currency":"EUR"}\n'],
    ['a negative value', '{"id":"I1","value":-1,"currency":"EUR"}'],
    ['a currency named like a JavaScript property', '{"id":"I1","value":1,"currency":"constructor"}'],
    [
      'an idempotencyKey field, which counts only in an array',
      '{"id":"I1","value":1,"currency":"EUR","idempotencyKey":5}',
    ],
    ['an unknown currency', '{"id":"I1","value":1,"currency":"shells"}'],
    ['the largest float32', '{"id":"I1","value":3.4028234e38,"currency":"CLF"}'],
    ['more decimals than the currency has', '{"id":"I1","value":1.005,"currency":"JPY"}'],
  ])('is accepted with %s', async (_name, body) => {
    expect(await pay(body)).toEqual({ status: 200, body: { id: 'I1' } });
  });

  test.each(['application/json', 'text/plain', 'application/x-www-form-urlencoded', 'nonsense'])(
    'is accepted as %s',
    async (type) => {
      const answer = await pay('{"id":"I1","value":1,"currency":"EUR"}', { 'Content-Type': type });
      expect(answer).toEqual({ status: 200, body: { id: 'I1' } });
    },
  );

  test.each([
    ['an empty body', '', wrongParameters],
    ['no JSON', 'id=I1&value=1&currency=EUR', wrongParameters],
    ['truncated JSON', '{"id":"I1","value":1,', wrongParameters],
    ['a string', '"I1"', wrongParameters],
    ['a number', '7', wrongParameters],
    ['an id that is an object', '{"id":{"toString":1},"value":1,"currency":"EUR"}', wrongParameters],
    ['an id that Postgres cannot store', '{"id":"I\\u0000","value":1,"currency":"EUR"}', wrongParameters],
    ['a currency that Postgres cannot store', '{"id":"I1","value":1,"currency":"\\u0000"}', wrongParameters],
    ['an id that is a number', '{"id":1,"value":1,"currency":"EUR"}', wrongParameters],
    ['a value that is a string', '{"id":"I1","value":"1","currency":"EUR"}', wrongParameters],
    ['a currency that is an object', '{"id":"I1","value":1,"currency":{}}', wrongParameters],
    ['a value beyond float32', '{"id":"I1","value":3.5e38,"currency":"EUR"}', wrongParameters],
    ['a wrong type and no id', '{"value":"1"}', wrongParameters],
    ['the body null', 'null', noId],
    ['an empty object', '{}', noId],
    ['an empty id', '{"id":"","value":1,"currency":"EUR"}', noId],
    ['the id null', '{"id":null,"value":1,"currency":"EUR"}', noId],
    ['only a value', '{"value":1}', noId],
    ['only a currency', '{"currency":"EUR"}', noId],
    ['a value and a currency', '{"value":1,"currency":"EUR"}', noId],
    ['only an id', '{"id":"I1"}', noValue],
    ['an id and a currency', '{"id":"I1","currency":"EUR"}', noValue],
    ['the value 0', '{"id":"I1","value":0,"currency":"EUR"}', noValue],
    ['a value that float32 rounds to 0', '{"id":"I1","value":1e-50,"currency":"EUR"}', noValue],
    ['the value null', '{"id":"I1","value":null,"currency":"EUR"}', noValue],
    ['an id and a value', '{"id":"I1","value":1}', noCurrency],
    ['an empty currency', '{"id":"I1","value":1,"currency":""}', noCurrency],
  ])('is refused with %s', async (_name, body, error) => {
    expect(await pay(body)).toEqual({ status: 400, body: { error } });
    expect(await stored()).toEqual([]);
  });

  test('is accepted up to 512 kB and refused above', async () => {
    const body = '{"id":"I1","value":1,"currency":"EUR"}';
    expect(await pay(body.padEnd(512 * 1024))).toEqual({ status: 200, body: { id: 'I1' } });
    expect(await pay(body.padEnd(512 * 1024 + 1))).toEqual({
      status: 413,
      body: { error: 'request body too large, at most 512 kB' },
    });
    expect(await stored()).toHaveLength(1);
  });
});

test('FAILURE_RATE=1 declines every payment', async () => {
  await using declining = await startService(paymentProvider, { FAILURE_RATE: '1' });
  expect(await post(`${declining.url}/payments/pay`, '{"id":"I1","value":1,"currency":"EUR"}')).toEqual({
    status: 402,
    body: { error: 'payment declined' },
  });
});

test('FAILURE_RATE declines about its share of the payments', { tags: ['slow'] }, async () => {
  await using declining = await startService(paymentProvider, { FAILURE_RATE: '0.5' });
  const answers = await Promise.all(
    Array.from({ length: 400 }, () =>
      post(`${declining.url}/payments/pay`, '{"id":"I1","value":1,"currency":"EUR"}'),
    ),
  );
  const declined = answers.filter(({ status }) => status === 402).length;
  // Five standard deviations around the mean: a correct rate fails once in two million runs.
  expect(declined).toBeGreaterThan(150);
  expect(declined).toBeLessThan(250);
});

test('an unknown route gets 404, a wrong method 405 with the allowed methods', async () => {
  expect(await ask(`${service.url}/nowhere`)).toEqual({ status: 404, body: { error: 'not found' } });
  const response = await fetch(`${service.url}/payments/pay`);
  expect(response.status).toBe(405);
  expect(response.headers.get('Allow')).toBe('POST');
  expect(await response.json()).toEqual({ error: 'method not allowed, only POST' });
});

test('/version names the service, its source and its instance', async () => {
  expect(await ask(`${service.url}/version`)).toEqual({
    status: 200,
    body: { service: 'payment-provider', source: 'the code under test', instance: 'test' },
  });
});

test('/reset is 404 unless it is allowed', async () => {
  await using strict = await startService(paymentProvider);
  expect(await post(`${strict.url}/reset`)).toEqual({ status: 404, body: { error: 'not found' } });
});
