import { execFile } from 'node:child_process';
import { resolve } from 'node:path';
import { expect, test } from 'vitest';
import { listen } from './service.ts';

interface Invoice {
  InvoiceId: string;
  Value: number;
  IsPaid: boolean;
}

/** Runs test.sh against a deployment that has no /version and no /reset, and whose `pay` is this. */
async function runTest(pay: (invoices: Invoice[]) => [status: number, body: unknown]) {
  const invoices = [1, 2].map((n) => ({ InvoiceId: `I${n}`, Value: n, IsPaid: false }));
  await using server = await listen(({ method, url }, response) => {
    const answer = (): [number, unknown] => {
      if (url === '/invoices') return [200, invoices];
      return method === 'POST' && url === '/invoices/pay' ? pay(invoices) : [404, {}];
    };
    const [status, body] = answer();
    response.writeHead(status).end(JSON.stringify(body));
  });
  const script = resolve(import.meta.dirname, '../../test.sh');
  return await new Promise<{ passed: boolean; stdout: string; stderr: string }>((done) => {
    execFile(script, [server.url], (error, stdout, stderr) =>
      done({ passed: error === null, stdout, stderr }),
    );
  });
}

const payAll = (invoices: Invoice[]) => {
  for (const invoice of invoices) invoice.IsPaid = true;
};

test('passes where all is paid, and says what it left out', async () => {
  const { passed, stdout } = await runTest((invoices) => {
    payAll(invoices);
    return [200, {}];
  });
  expect([passed, stdout.split('\n')]).toEqual([
    true,
    [
      '1..8',
      'ok 1 - every replica runs the code in this folder # SKIP no /version here',
      'ok 2 - the invoices are reset # SKIP not allowed here',
      'ok 3 - there are unpaid invoices',
      'ok 4 - paying is answered with 200',
      'ok 5 - every invoice is paid',
      'ok 6 - the amounts are untouched',
      'ok 7 - paying again is answered with 200',
      'ok 8 - paying again changes nothing',
      '',
    ],
  ]);
});

test('asks again for what was declined', async () => {
  let declined = false;
  const { passed } = await runTest((invoices) => {
    if (declined) payAll(invoices);
    declined = true;
    return [200, {}];
  });
  expect(passed).toBe(true);
});

test.each<[string, (invoices: Invoice[]) => [number, unknown], RegExp]>([
  [
    'a pay that answers 502, although all is paid',
    (invoices) => {
      payAll(invoices);
      return [502, { paid: 1 }];
    },
    /paying is answered with 200: POST .* answered 502: \{"paid":1\}/,
  ],
  ['a pay that pays nothing', () => [200, {}], /every invoice is paid: 2 are not/],
  ['a provider that is down', () => [502, { paid: 0 }], /paying is answered with 200: .* 502/],
  [
    'amounts that change',
    (invoices) => {
      payAll(invoices);
      invoices[0]!.Value += 1;
      return [200, {}];
    },
    /the amounts are untouched/,
  ],
])('fails in one line with %s', { timeout: 60_000 }, async (_name, pay, message) => {
  const { passed, stderr } = await runTest(pay);
  expect(passed).toBe(false);
  expect(stderr).toMatch(message);
  expect(stderr.trim().split('\n')).toHaveLength(1);
});
