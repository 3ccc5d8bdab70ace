// Runs clients written for the original services: shell scripts, each against three replicas behind one address.
// @module-tag slow
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { connect, createServer, type AddressInfo } from 'node:net';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import * as invoiceApp from '../../services/invoice-app/src/service.ts';
import * as paymentProvider from '../../services/payment-provider/src/service.ts';
import { startService, type RunningService } from '../support/start-service.ts';

/** Listens on one address and forwards each connection to the next service in turn. */
async function balance(services: RunningService[]): Promise<AsyncDisposable & { url: string }> {
  let next = 0;
  const server = createServer((client) => {
    const { hostname, port } = new URL(services[next++ % services.length]!.url);
    const upstream = connect(Number(port), hostname);
    client.pipe(upstream).pipe(client);
    for (const socket of [client, upstream]) {
      socket.on('error', () => {
        client.destroy();
        upstream.destroy();
      });
    }
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      const closed = once(server, 'close');
      server.close();
      await closed;
    },
  };
}

/** Runs a client's script in bash, with `url` as its first argument. @returns its standard output, trimmed */
async function run(script: string, url: string): Promise<string> {
  const strict = `set -o errexit -o nounset -o pipefail\nreadonly url=$1\n${script}`;
  const { stdout } = await promisify(execFile)('bash', ['-c', strict, 'client', url], { timeout: 100_000 });
  return stdout.trim();
}

const count = `count() { curl -sf "$url/invoices" | jq "map(select(.IsPaid == $1)) | length"; }`;

test.each([
  [
    'counts the unpaid invoices, pays, and expects all to be paid',
    '0',
    `${count}
    [[ $(count false) == 1000 ]]
    curl -sf -X POST "$url/invoices/pay" >/dev/null
    # Each replica in turn.
    for _ in 1 2 3; do echo "$(count true) $(count false)"; done`,
    '1000 0\n1000 0\n1000 0',
  ],
  [
    'parses the response to pay as JSON',
    '0.5',
    `curl -sf -X POST -d '{}' "$url/invoices/pay" | jq --exit-status --compact-output .`,
    '{}',
  ],
  [
    'calls pay until the response is exactly true',
    '0.5',
    `${count}
    tries=1
    until [[ $(curl -s -X POST "$url/rest/v1/invoices/pay") == true ]]; do tries=$((tries + 1)); done
    # The provider declines half of the rest each time, so one call cannot pay all 1,000.
    echo "$((tries > 1)) $(count true) $(count false)"`,
    '1 1000 0',
  ],
  [
    'calls pay until no Antaeus invoice is pending',
    '0.5',
    `pending() { curl -sf "$url/rest/v1/invoices" | jq '[.[] | select(.status == "PENDING")] | length'; }
    until [[ $(pending) == 0 ]]; do curl -sf -X POST "$url/rest/v1/invoices/pay" >/dev/null; done
    pending`,
    '0',
  ],
])('serves a client that %s', { timeout: 120_000 }, async (_name, failureRate, script, output) => {
  await using provider = await startService(paymentProvider, { FAILURE_RATE: failureRate });
  const env = { SEED_INVOICES: '1000', PAYMENT_PROVIDER_URL: `${provider.url}/payments/pay` };
  await using first = await startService(invoiceApp, env, { instance: 'one' });
  const shared = { ...env, DATABASE_URL: first.databaseUrl };
  await using second = await startService(invoiceApp, shared, { instance: 'two' });
  await using third = await startService(invoiceApp, shared, { instance: 'three' });
  await using address = await balance([first, second, third]);
  expect(await run(script, address.url)).toBe(output);
});
