import { expect, test } from 'vitest';
import { kubectl, runScript } from './cluster.ts';

/** Sends a request to the provider from a pod of invoice-app. */
async function ask(path: string, init: RequestInit): Promise<{ status: number; body: unknown }> {
  const url = `http://payment-provider.payment-provider:8082${path}`;
  const script = `
    const response = await fetch(${JSON.stringify(url)}, ${JSON.stringify(init)});
    console.log(JSON.stringify({ status: response.status, body: await response.json() }));`;
  return JSON.parse(await runScript('invoice-app', 'deployment/invoice-app', script));
}

/** Sends the provider an empty list of payments with this token. */
const payNothing = (token?: string) =>
  ask('/payments/pay', {
    method: 'POST',
    body: '[]',
    headers: token === undefined ? {} : { Authorization: `Bearer ${token}` },
  });

/** Creates a token of a service account. The default audience is the API server. */
const createToken = async (namespace: string, account: string, audience?: string) =>
  (
    await kubectl(
      'create',
      'token',
      account,
      `--namespace=${namespace}`,
      ...(audience === undefined ? [] : [`--audience=${audience}`]),
    )
  ).trim();

const unauthorized = { status: 401, body: { error: 'unauthorized' } };
const forbidden = { status: 403, body: { error: 'forbidden' } };

test('the provider accepts invoice-app’s token', async () => {
  expect(await payNothing(await createToken('invoice-app', 'invoice-app', 'payment-provider'))).toEqual({
    status: 200,
    body: [],
  });
});

test('the provider refuses requests without a valid token', async () => {
  expect(await payNothing()).toEqual(unauthorized);
  expect(await payNothing('garbage')).toEqual(unauthorized);
  expect(await ask('/reset', { method: 'POST' })).toEqual(unauthorized);
});

test.each([['another'], [undefined]])(
  'the provider refuses invoice-app’s token for the audience %s',
  async (audience?: string) => {
    expect(await payNothing(await createToken('invoice-app', 'invoice-app', audience))).toEqual(unauthorized);
  },
);

test.each([
  ['invoice-app', 'default'],
  ['payment-provider', 'payment-provider'],
  ['default', 'default'],
])('the provider refuses a token of %s:%s', async (namespace, account) => {
  expect(await payNothing(await createToken(namespace, account, 'payment-provider'))).toEqual(forbidden);
});

test('/version needs no token', async () => {
  expect(await ask('/version', {})).toMatchObject({ status: 200, body: { service: 'payment-provider' } });
});

test.each([
  ['invoice-app', 'payment-provider'],
  ['payment-provider', 'https://kubernetes.default.svc.cluster.local'],
])('%s has a token for %s, and no other', async (service, audience) => {
  const script = `
    import { existsSync, readFileSync } from 'node:fs';
    const token = readFileSync('/run/secrets/identity/token', 'utf8');
    const { aud, sub } = JSON.parse(Buffer.from(token.split('.')[1], 'base64url'));
    console.log(JSON.stringify({ aud, sub, other: existsSync('/var/run/secrets/kubernetes.io') }));`;
  expect(JSON.parse(await runScript(service, `deployment/${service}`, script))).toEqual({
    aud: [audience],
    sub: `system:serviceaccount:${service}:${service}`,
    other: false,
  });
});
