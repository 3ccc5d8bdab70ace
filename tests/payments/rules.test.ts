import { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import * as invoiceApp from '../../services/invoice-app/src/service.ts';
import * as paymentProvider from '../../services/payment-provider/src/service.ts';
import { brokenRules, takeSnapshot } from './rules.ts';
import { post, startService, type RunningService } from '../support/start-service.ts';

let services: RunningService[];
let app: Client;
let provider: Client;
beforeAll(async () => {
  const providerService = await startService(paymentProvider);
  const appService = await startService(invoiceApp, {
    PAYMENT_PROVIDER_URL: `${providerService.url}/payments/pay`,
  });
  services = [appService, providerService];
  await post(`${appService.url}/invoices/pay`);
  [app, provider] = services.map(({ databaseUrl }) => new Client({ connectionString: databaseUrl })) as [
    Client,
    Client,
  ];
  await Promise.all([app.connect(), provider.connect()]);
});
afterAll(async () => {
  await Promise.all([app.end(), provider.end()]);
  for (const service of services) await service[Symbol.asyncDispose]();
});
// Rolls back the changes of the previous test.
beforeEach(async () => {
  for (const client of [app, provider]) await client.query('ROLLBACK; BEGIN');
});

test('data after a payment run break no rule', async () => {
  expect(await brokenRules({ app, provider }, await takeSnapshot(app))).toEqual([]);
});

const chargeAgain = (id: string) => `
  INSERT INTO payments (payment_id, amount, currency, outcome, idempotency_key)
  SELECT payment_id, amount, currency, outcome, uuidv7() FROM payments WHERE payment_id = '${id}'`;

test.each<[string, { app?: string; provider?: string }, (string | RegExp)[]]>([
  [
    'an invoice charged twice',
    { provider: chargeAgain('I1') },
    [
      'rule 1: I1 was charged 2 times',
      'rule 5: EUR: invoices paid 1215, history 1215, ledger 2430',
      /^rule 6: attempt .*: history nothing, ledger charged I1$/,
    ],
  ],
  [
    'a paid invoice that was never charged',
    { provider: `DELETE FROM payments WHERE payment_id = 'I1'` },
    [
      'rule 2: I1 is paid with 1215 EUR, but charged with nothing ',
      'rule 5: EUR: invoices paid 1215, history 1215, ledger 0',
      /^rule 6: attempt .*: history charged I1, ledger nothing$/,
    ],
  ],
  [
    'a charge of another amount',
    { provider: `UPDATE payments SET amount = 1 WHERE payment_id = 'I1'` },
    [
      'rule 2: I1 is paid with 1215 EUR, but charged with 1 EUR',
      'rule 5: EUR: invoices paid 1215, history 1215, ledger 1',
      /^rule 6: /,
    ],
  ],
  [
    'a charge for an unpaid invoice',
    {
      app: `ALTER TABLE invoices DISABLE TRIGGER USER;
        UPDATE invoices SET paid_at = NULL WHERE id = 2`,
    },
    [
      'rule 3: I2 was charged but is not paid',
      'rule 4: I2 is unpaid, but its history has 1 charges with its key, amount and currency',
      'rule 4: I2 was paid, and is now unpaid or has another payment time',
      'rule 5: GBP: invoices paid 0, history 1025, ledger 1025',
    ],
  ],
  [
    'an invoice paid a second time',
    {
      app: `ALTER TABLE invoices DISABLE TRIGGER USER;
        UPDATE invoices SET paid_at = now() + interval '1s' WHERE id = 3`,
    },
    ['rule 4: I3 was paid, and is now unpaid or has another payment time'],
  ],
  [
    'a changed history',
    {
      app: `ALTER TABLE payment_events DISABLE TRIGGER ALL;
        UPDATE payment_events SET happened_at = happened_at - interval '1s' WHERE invoice_id = 1`,
    },
    [/^rule 4: event \d+ of the history was changed or removed$/],
  ],
  [
    'an attempt that ended twice',
    {
      app: `INSERT INTO payment_events (invoice_id, idempotency_key, kind, amount, currency)
        SELECT invoice_id, idempotency_key, 'declined', amount, currency FROM payment_events WHERE invoice_id = 1`,
    },
    [
      /^rule 6: attempt .* of I1 ended 2 times$/,
      /^rule 6: attempt .*: history declined I1, ledger charged I1$/,
    ],
  ],
  [
    'a lease that was never reclaimed',
    { app: `UPDATE batches SET holder = 'gone', leased_until = now()` },
    [/^rule 7: batch 1 is still leased, holder gone, until /],
  ],
])('reports %s', async (_name, change, lines) => {
  const before = await takeSnapshot(app);
  if (change.app) await app.query(change.app);
  if (change.provider) await provider.query(change.provider);
  const broken = await brokenRules({ app, provider }, before);
  const found = broken.map((line, n) => {
    const wanted = lines[n];
    return wanted instanceof RegExp && wanted.test(line) ? wanted : line;
  });
  expect(found).toEqual(lines);
});
