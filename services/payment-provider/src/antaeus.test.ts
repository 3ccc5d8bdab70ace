import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { parse } from 'yaml';
import { post, startService, type RunningService } from '../../../tests/support/start-service.ts';
import * as paymentProvider from './service.ts';

let provider: RunningService;
let undecided: RunningService;
beforeAll(async () => {
  provider = await startService(paymentProvider);
  undecided = await startService(paymentProvider, { FAILURE_RATE: '0.5', FAULT_SEED: '1' });
});
afterAll(async () => {
  await provider[Symbol.asyncDispose]();
  await undecided[Symbol.asyncDispose]();
});

const pay = ({ url }: RunningService, body: unknown, headers?: Record<string, string>) =>
  post(`${url}/rest/v1/payments`, JSON.stringify(body), headers);

test.each([
  ['a currency', { currency: 'USD', value: 301.99, customer_id: 1 }],
  ['the empty currency object of the original client', { currency: {}, value: 301.99, customer_id: 1 }],
  ['no currency', { value: 301.99, customer_id: 1 }],
  ['field names in any case', { Currency: 'USD', VALUE: 301.99, Customer_Id: 1 }],
])('the Antaeus form is charged with %s', async (_name, body) => {
  expect(await pay(provider, body)).toEqual({ status: 200, body: { result: true } });
});

test('Antaeus, configured as in docs/contract.md, reaches the service and its request is charged', async () => {
  const root = join(import.meta.dirname, '../../..');
  const read = (file: string) => readFileSync(join(root, file), 'utf8');
  const [, endpoint = ''] = /PAYMENT_PROVIDER_ENDPOINT=(http:[^\s`]+)/.exec(read('docs/contract.md')) ?? [];
  const { hostname, port, pathname } = new URL(endpoint);
  const { data } = parse(read('services/payment-provider/deploy/service.yaml'));
  expect(hostname).toBe(`${data.name}.${data.name}`);
  expect(data.port).toBe(port);

  // Byte for byte the body of the original, which sends the currency as an empty object.
  const body = '{"currency":{},"value":301.99,"customer_id":1}';
  const socket = connect(Number(new URL(provider.url).port), '127.0.0.1');
  socket.write(
    `POST ${pathname} HTTP/1.1\r\nHost: ${new URL(endpoint).host}\r\nContent-Type: application/json\r\n` +
      `Content-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
  );
  const answer = await text(socket);
  expect(answer).toMatch(/^HTTP\/1.1 200 OK/);
  expect(answer.split('\r\n\r\n')[1]).toBe('{"result":true}');
});

test.each([
  ['no value', { currency: 'USD', customer_id: 1 }],
  ['no customer', { currency: 'USD', value: 1 }],
  ['a value that is a string', { currency: 'USD', value: '1', customer_id: 1 }],
  ['null', null],
  ['an array', []],
])('the Antaeus form is refused with %s', async (_name, body) => {
  expect(await pay(provider, body)).toEqual({
    status: 400,
    body: { error: 'failed to process payment request parameters' },
  });
});

test(
  'about half of 2,000 calls have the result true at a failure rate of 0.5',
  { timeout: 30_000 },
  async () => {
    const results: boolean[] = [];
    for (let round = 0; round < 20; round += 1) {
      const answers = await Promise.all(
        Array.from({ length: 100 }, (_, n) => pay(undecided, { currency: 'USD', value: 1, customer_id: n })),
      );
      for (const { status, body } of answers) {
        expect(status).toBe(200);
        results.push((body as { result: boolean }).result);
      }
    }
    // Five standard deviations of a binomial distribution around its mean.
    expect(Math.abs(results.filter(Boolean).length - 1_000)).toBeLessThan(5 * Math.sqrt(2_000 * 0.25));
  },
);

test('an idempotency key always gets its first result', async () => {
  const payment = { currency: 'USD', value: 1, customer_id: 7 };
  const answers = [];
  for (let n = 0; n < 10; n += 1)
    answers.push(await pay(undecided, payment, { 'Idempotency-Key': 'antaeus-1' }));
  expect(new Set(answers.map(({ body }) => JSON.stringify(body))).size).toBe(1);
});
