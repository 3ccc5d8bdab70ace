// Strings and numbers that JSON, JavaScript or Postgres could change silently.
import { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { startService, type RunningService } from '../../../tests/support/start-service.ts';
import * as paymentProvider from './service.ts';

let service: RunningService;
let database: Client;
beforeAll(async () => {
  service = await startService(paymentProvider);
  database = new Client({ connectionString: service.databaseUrl });
  await database.connect();
});
beforeEach(() => database.query('TRUNCATE payments'));
afterAll(async () => {
  await database.end();
  await service[Symbol.asyncDispose]();
});

const wrong = 'failed to process payment request parameters';
const keyRule = 'an idempotency key must have 1 to 255 characters';

async function send(body: string | Uint8Array, path = '/payments/pay', headers: Record<string, string> = {}) {
  const bytes = typeof body === 'string' ? new TextEncoder().encode(body) : new Uint8Array(body);
  const response = await fetch(service.url + path, { method: 'POST', body: bytes, headers });
  return { status: response.status, body: (await response.json()) as any };
}
const stored = async () =>
  (await database.query('SELECT payment_id AS id, amount, currency, idempotency_key AS key FROM payments'))
    .rows;

describe('Unicode in keys', () => {
  test.each(['k\\ud800', '\\udc00k', '\\udc00\\ud800'])(
    '"%s" is malformed: it gets 400 in an array and charges nothing',
    async (key) => {
      const element = `{"id":"I1","value":5,"currency":"EUR","idempotencyKey":"${key}"}`;
      const refused = { status: 400, id: 'I1', error: keyRule };
      expect(await send(`[${element},${element.replace(key, `${key}\\ud801`)}]`)).toEqual({
        status: 200,
        body: [refused, refused],
      });
      expect(await stored()).toEqual([]);
    },
  );

  test('a surrogate pair is a valid character', async () => {
    const element = '{"id":"I1","value":5,"currency":"EUR","idempotencyKey":"k\\ud83d\\ude00"}';
    expect((await send(`[${element}]`)).body).toEqual([{ status: 200, id: 'I1' }]);
    expect((await send(`[${element}]`)).body).toEqual([{ status: 200, id: 'I1', repeated: true }]);
    expect(await stored()).toMatchObject([{ key: 'k😀' }]);
  });

  test('a header and an array element with the same key repeat each other', async () => {
    const header = Buffer.from('k😀é').toString('latin1');
    expect(
      (await send('{"id":"I1","value":5,"currency":"EUR"}', undefined, { 'Idempotency-Key': header })).status,
    ).toBe(200);
    const { body } = await send('[{"id":"I1","value":5,"currency":"EUR","idempotencyKey":"k😀é"}]');
    expect(body).toEqual([{ status: 200, id: 'I1', repeated: true }]);
  });

  test('a header that is not UTF-8 gets 400', async () => {
    const headers = { 'Idempotency-Key': 'k\xff' };
    const answer = await send('{"id":"I1","value":5,"currency":"EUR"}', undefined, headers);
    expect(answer).toEqual({ status: 400, body: { error: keyRule } });
  });
});

test.each([
  ['an id', '{"id":"I\\ud800","value":5,"currency":"EUR"}'],
  ['a currency', '{"id":"I1","value":5,"currency":"E\\udfff"}'],
])('%s of malformed Unicode gets 400', async (_name, body) => {
  expect(await send(body)).toEqual({ status: 400, body: { error: wrong } });
});

test.each([
  ['a lone continuation byte', [0x80]],
  ['half of a character', [0xf0, 0x9f]],
  ['a surrogate in three bytes', [0xed, 0xa0, 0x80]],
  ['an overlong slash', [0xc0, 0xaf]],
])('a body with %s is not UTF-8 and gets 400', async (_name, bytes) => {
  const [before, after] = ['{"id":"I', '","value":5,"currency":"EUR"}'].map((text) =>
    new TextEncoder().encode(text),
  );
  expect(await send(new Uint8Array([...before!, ...bytes, ...after!]))).toEqual({
    status: 400,
    body: { error: wrong },
  });
  expect(await stored()).toEqual([]);
});

test('a known key gets 500 if its stored answer is not found', async () => {
  await using blind = await startService(
    paymentProvider,
    { DATABASE_URL: service.databaseUrl },
    { step: (name, work) => (name === 'look up' ? Promise.resolve(new Map() as never) : work()) },
  );
  const ask = () =>
    fetch(`${blind.url}/payments/pay`, {
      method: 'POST',
      body: '{"id":"I1","value":5,"currency":"EUR"}',
      headers: { 'Idempotency-Key': 'a' },
    });
  expect((await ask()).status).toBe(200);
  expect((await ask()).status).toBe(500);
});

describe('__proto__ and constructor are ordinary field names', () => {
  test.each([
    '{"__proto__":{"id":"I1","value":5,"currency":"EUR"}}',
    '{"__PROTO__":{"id":"I1","value":5,"currency":"EUR"}}',
    '{"constructor":{"id":"I1","value":5,"currency":"EUR"}}',
    '{"__proto__":{"id":"I1"},"value":5,"currency":"EUR"}',
  ])('%s gets 400', async (body) => {
    expect(await send(body)).toEqual({ status: 400, body: { error: 'could not retrieve payment id' } });
    const { body: outcomes } = await send(`[${body}]`);
    expect(outcomes).toEqual([{ status: 400, error: 'could not retrieve payment id' }]);
  });

  test('in the Antaeus form too', async () => {
    const answer = await send('{"__proto__":{"value":1,"customer_id":1}}', '/rest/v1/payments');
    expect(answer).toEqual({ status: 400, body: { error: wrong } });
  });
});

describe('numbers that a double cannot hold', () => {
  test.each([
    '70368744177664.01',
    '90071992547409.93',
    '12345678901234567',
    '-70368744177664.01',
    '7036874417766401e-2',
  ])('%s EUR is refused', async (value) => {
    expect(await send(`{"id":"I1","value":${value},"currency":"EUR"}`)).toEqual({
      status: 400,
      body: { error: wrong },
    });
    expect(await stored()).toEqual([]);
  });

  test('only the array element with such a number is refused', async () => {
    const element = (id: string, value: string) =>
      `{"id":"${id}","value":${value},"currency":"EUR","idempotencyKey":"${id}"}`;
    const { body } = await send(`[${element('I1', '70368744177664.01')},${element('I2', '5')}]`);
    expect(body).toEqual([
      { status: 400, id: 'I1', error: wrong },
      { status: 200, id: 'I2' },
    ]);
  });

  test('a customer number that a double rounds to another one is refused', async () => {
    const body = '{"value":1,"customer_id":9007199254740993,"currency":"EUR"}';
    expect(await send(body, '/rest/v1/payments')).toEqual({ status: 400, body: { error: wrong } });
    const even = body.replace('993', '992');
    expect(await send(even, '/rest/v1/payments')).toEqual({ status: 200, body: { result: true } });
  });

  test.each([
    ['12.150000000000000355', '1215'],
    ['9999999999999.99', '999999999999999'],
    ['3.4028234e38', `34028234${'0'.repeat(33)}`],
    ['0.10000000000000000555', '10'],
  ])('%s EUR fits and is charged as %s', async (value, amount) => {
    expect((await send(`{"id":"I1","value":${value},"currency":"EUR"}`)).status).toBe(200);
    expect(await stored()).toMatchObject([{ amount }]);
  });

  test('a number of 400,000 digits is read within a second', async () => {
    const start = performance.now();
    const value = `1${'0'.repeat(400_000)}e-400000`;
    expect((await send(`{"id":"I1","value":${value},"currency":"EUR"}`)).status).toBe(200);
    expect(await stored()).toMatchObject([{ amount: '100' }]);
    const large = value.replace('e-400000', 'e-399980');
    expect((await send(`{"id":"I2","value":${large},"currency":"EUR"}`)).status).toBe(400);
    expect(performance.now() - start).toBeLessThan(1_000);
  });

  test('a number in an unknown field is ignored', async () => {
    expect((await send('{"id":"I1","value":5,"currency":"EUR","note":70368744177664.01}')).status).toBe(200);
  });
});

describe('values near 0', () => {
  test.each([
    ['0.004', 'EUR'],
    ['-0.0049', 'EUR'],
    ['0.4', 'JPY'],
    ['0.0004', 'KWD'],
    ['1e-300', 'EUR'],
  ])('%s %s rounds to 0 and gets 400', async (value, currency) => {
    const error = 'could not retrieve payment value';
    expect(await send(`{"id":"I1","value":${value},"currency":"${currency}"}`)).toEqual({
      status: 400,
      body: { error },
    });
    const antaeus = await send(
      `{"value":${value},"customer_id":1,"currency":"${currency}"}`,
      '/rest/v1/payments',
    );
    expect(antaeus).toEqual({ status: 400, body: { error: wrong } });
  });

  test.each([
    ['0.005', 'EUR', '1'],
    ['-0.005', 'EUR', '-1'],
    ['0.5', 'JPY', '1'],
    ['0.00005', 'CLF', '1'],
  ])('%s %s is charged as one minor unit', async (value, currency, amount) => {
    await send(`{"id":"I1","value":${value},"currency":"${currency}"}`);
    expect(await stored()).toMatchObject([{ amount }]);
  });
});

test.each(['jpy', 'Jpy', 'JPY'])('%s has no decimals and is stored in upper case', async (currency) => {
  await send(`{"id":"I1","value":1200,"currency":"${currency}"}`);
  await send(`{"value":1200,"customer_id":1,"currency":"${currency}"}`, '/rest/v1/payments');
  const kept = { amount: '1200', currency: 'JPY' };
  expect(await stored()).toMatchObject([kept, kept]);
});

describe('ids, currencies and keys have a maximum length', () => {
  test.each([
    ['an id', { id: 'x'.repeat(256) }, 'a payment id must have at most 255 characters'],
    ['an id of 100 kB', { id: 'x'.repeat(100_000) }, 'a payment id must have at most 255 characters'],
    ['a currency', { currency: 'x'.repeat(33) }, 'a payment currency must have at most 32 characters'],
  ])('%s that is too long gets 400', async (_name, more, error) => {
    const payment = { id: 'I1', value: 5, currency: 'EUR', ...more };
    expect(await send(JSON.stringify(payment))).toEqual({ status: 400, body: { error } });
  });

  test.each([
    ['a customer', { customer_id: 'x'.repeat(300) }],
    ['a currency', { currency: 'x'.repeat(33) }],
  ])('%s that is too long gets 400 in the Antaeus form', async (_name, more) => {
    const payment = { value: 5, customer_id: 1, currency: 'EUR', ...more };
    expect(await send(JSON.stringify(payment), '/rest/v1/payments')).toEqual({
      status: 400,
      body: { error: wrong },
    });
  });

  test.each([
    ['payment_id', `repeat('x', 256)`],
    ['idempotency_key', `repeat('x', 256)`],
    ['idempotency_key', `''`],
    ['currency', `repeat('x', 33)`],
    ['currency', `'jpy'`],
  ])('the database rejects %s = %s', async (column, value) => {
    await send('{"id":"I1","value":5,"currency":"EUR"}');
    await expect(database.query(`UPDATE payments SET ${column} = ${value}`)).rejects.toThrow(
      'check constraint',
    );
  });
});
