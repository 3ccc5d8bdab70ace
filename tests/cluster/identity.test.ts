import { beforeAll, expect, test } from 'vitest';
import { request } from './api.ts';
import { runScript } from './cluster.ts';

/** Creates a token of a service account. The default audience is the API server. */
async function createToken(namespace: string, account: string, audience?: string): Promise<string> {
  const body = { spec: { audiences: audience === undefined ? undefined : [audience] } };
  const path = `/api/v1/namespaces/${namespace}/serviceaccounts/${account}/token`;
  return (await request(path, { method: 'POST', body })).status.token;
}

const unauthorized = { status: 401, body: { error: 'unauthorized' } };
const forbidden = { status: 403, body: { error: 'forbidden' } };

/** Sends the provider an empty list of payments with this token. */
const payNothing = (token?: string) => ({
  path: '/payments/pay',
  method: 'POST',
  body: '[]',
  headers: token === undefined ? {} : { Authorization: `Bearer ${token}` },
});
const ofInvoiceApp = (audience?: string) => createToken('invoice-app', 'invoice-app', audience);
const forProvider = (namespace: string, account: string) =>
  createToken(namespace, account, 'payment-provider');

/** Requests to the provider, and what it answers. */
const requests = [
  [
    'accepts invoice-app’s token',
    payNothing(await ofInvoiceApp('payment-provider')),
    { status: 200, body: [] },
  ],
  ['refuses a payment without a token', payNothing(), unauthorized],
  ['refuses garbage as a token', payNothing('garbage'), unauthorized],
  ['refuses a reset without a token', { path: '/reset', method: 'POST' }, unauthorized],
  [
    'refuses invoice-app’s token for another audience',
    payNothing(await ofInvoiceApp('another')),
    unauthorized,
  ],
  ['refuses invoice-app’s token for the API server', payNothing(await ofInvoiceApp()), unauthorized],
  ...(await Promise.all(
    [
      ['invoice-app', 'default'],
      ['payment-provider', 'payment-provider'],
      ['default', 'default'],
    ].map(
      async ([namespace = '', account = '']) =>
        [
          `refuses a token of ${namespace}:${account}`,
          payNothing(await forProvider(namespace, account)),
          forbidden,
        ] as const,
    ),
  )),
  [
    'needs no token for /version',
    { path: '/version' },
    { status: 200, body: expect.objectContaining({ service: 'payment-provider' }) },
  ],
] as const;

/** What the provider answers to each of them, sent from a pod of invoice-app. */
let answers: unknown[];
beforeAll(async () => {
  // One script sends all of them, because each start of Node takes half a second.
  const script = `console.log(JSON.stringify(await Promise.all(
    ${JSON.stringify(requests.map(([, sent]) => sent))}.map(async ({ path, ...init }) => {
      const response = await fetch('http://payment-provider.payment-provider:8082' + path, init);
      return { status: response.status, body: await response.json() };
    }),
  )))`;
  answers = JSON.parse(await runScript('invoice-app', script));
});

test.each(requests.map(([title, , expected], n) => [title, expected, n] as const))(
  'the provider %s',
  (_title, expected, n) => {
    expect(answers[n]).toEqual(expected);
  },
);

test.each([
  ['invoice-app', 'payment-provider'],
  ['payment-provider', 'https://kubernetes.default.svc.cluster.local'],
])('%s has a token for %s, and no other', async (service, audience) => {
  const script = `
    import { existsSync, readFileSync } from 'node:fs';
    const token = readFileSync('/run/secrets/identity/token', 'utf8');
    const { aud, sub } = JSON.parse(Buffer.from(token.split('.')[1], 'base64url'));
    console.log(JSON.stringify({ aud, sub, other: existsSync('/var/run/secrets/kubernetes.io') }));`;
  expect(JSON.parse(await runScript(service, script))).toEqual({
    aud: [audience],
    sub: `system:serviceaccount:${service}:${service}`,
    other: false,
  });
});
