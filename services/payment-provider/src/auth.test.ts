import { createHmac, generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { exportSPKI, importJWK, type CryptoKey, type JWK } from 'jose';
import { Client } from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { Issuer, subject } from '../../../tests/support/issuer.ts';
import {
  ask,
  listen,
  post,
  startService,
  startUnready,
  type RunningService,
} from '../../../tests/support/start-service.ts';
import * as paymentProvider from './service.ts';

const body = '{"id":"I1","value":1,"currency":"EUR"}';
const unauthorized = { status: 401, body: { error: 'unauthorized' } };
const forbidden = { status: 403, body: { error: 'forbidden' } };
const paid = { status: 200, body: { id: 'I1' } };

const bearing = (token: string) => ({ Authorization: `Bearer ${token}` });
const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');
const now = () => Math.floor(Date.now() / 1_000);
const pay = ({ url }: RunningService, token: string) => post(`${url}/payments/pay`, body, bearing(token));

/** Empties the ledger and returns how many payments it held. */
async function takeCharges({ databaseUrl }: RunningService): Promise<number> {
  const client = new Client({ connectionString: databaseUrl });
  await client.connect();
  try {
    return (await client.query('DELETE FROM payments')).rowCount ?? 0;
  } finally {
    await client.end();
  }
}

let issuer: Issuer;
let service: RunningService;
beforeAll(async () => {
  issuer = await Issuer.start();
  await issuer.addKey('elliptic', { alg: 'ES256' });
  await issuer.addKey('edwards', { alg: 'EdDSA' });
  service = await startService(paymentProvider, { ALLOW_RESET: 'true', ...issuer.env });
});
afterAll(async () => {
  await service[Symbol.asyncDispose]();
  await issuer.close();
});

describe('a token', () => {
  beforeEach(() => takeCharges(service));

  test.each(['first', 'elliptic'])('of the allowed account lets a payment through (key %s)', async (kid) => {
    expect(await pay(service, await issuer.sign({}, issuer.keys.get(kid)))).toEqual(paid);
    expect(await takeCharges(service)).toBe(1);
  });

  test('may have several audiences, and a scheme in any case', async () => {
    const token = await issuer.sign({ aud: ['another', 'payment-provider'] });
    const headers = { Authorization: `bearer ${token}` };
    expect(await post(`${service.url}/payments/pay`, body, headers)).toEqual(paid);
  });

  test.each<[string, () => string | Promise<string>, typeof unauthorized]>([
    ['garbage', () => 'garbage', unauthorized],
    ['three parts of garbage', () => 'a.b.c', unauthorized],
    ['another audience', () => issuer.sign({ aud: ['another'] }), unauthorized],
    ['no audience', () => issuer.sign({ aud: undefined }), unauthorized],
    ['another issuer', () => issuer.sign({ iss: 'https://another' }), unauthorized],
    ['no issuer', () => issuer.sign({ iss: undefined }), unauthorized],
    ['an expiry in the past', () => issuer.sign({ exp: now() - 10 }), unauthorized],
    ['no expiry', () => issuer.sign({ exp: undefined }), unauthorized],
    ['a start in the future', () => issuer.sign({ nbf: now() + 60 }), unauthorized],
    ['no subject', () => issuer.sign({ sub: undefined }), unauthorized],
    ['another service account', () => issuer.sign({ sub: `${subject}-2` }), forbidden],
    [
      'the same name in another namespace',
      () => issuer.sign({ sub: subject.replace('invoice', 'x') }),
      forbidden,
    ],
    [
      'a key that the issuer does not serve',
      async () => issuer.sign({}, await issuer.addKey('new', { served: false })),
      unauthorized,
    ],
    [
      'the id of another key',
      async () => issuer.sign({}, await issuer.addKey('first', { served: false })),
      unauthorized,
    ],
    [
      'an algorithm that Kubernetes does not use',
      () => issuer.sign({}, issuer.keys.get('edwards')),
      unauthorized,
    ],
    ['no algorithm', async () => withoutSignature(await issuer.sign(), 'none'), unauthorized],
    ['no algorithm, in capitals', async () => withoutSignature(await issuer.sign(), 'NONE'), unauthorized],
    ['no signature', async () => withoutSignature(await issuer.sign(), 'RS256'), unauthorized],
    ['the public key as the secret', async () => withPublicKeyAsSecret(await issuer.sign()), unauthorized],
    ['a key of its own in the header', async () => withOwnKey(), unauthorized],
  ])('with %s is refused and charges nothing', async (_name, make, refusal) => {
    expect(await pay(service, await make())).toEqual(refusal);
    expect(await takeCharges(service)).toBe(0);
  });

  test.each([[undefined], ['Bearer'], ['Bearer '], ['Basic abc'], ['Token abc']])(
    'is missing if the Authorization header is %o',
    async (header: string | undefined) => {
      const response = await fetch(`${service.url}/payments/pay`, {
        method: 'POST',
        body,
        headers: header === undefined ? {} : { Authorization: header },
      });
      expect(response.status).toBe(401);
      expect(response.headers.get('WWW-Authenticate')).toBe('Bearer');
      expect(await response.json()).toEqual({ error: 'unauthorized' });
      expect(await takeCharges(service)).toBe(0);
    },
  );

  test('is refused if any claim is changed', async () => {
    const other = fc.oneof(fc.string(), fc.integer(), fc.constant(null), fc.boolean(), fc.array(fc.string()));
    const past = fc.integer({ min: -(2 ** 31), max: now() - 10 });
    const future = fc.integer({ min: now() + 600, max: 2 ** 40 });
    const changes = fc.oneof(
      fc.tuple(fc.constantFrom('iss', 'sub', 'aud'), other),
      fc.tuple(fc.constant('exp'), fc.oneof(past, fc.string())),
      fc.tuple(fc.constant('nbf'), fc.oneof(future, fc.string())),
    );
    await fc.assert(
      fc.asyncProperty(changes, async ([claim, value]) => {
        const { status } = await pay(service, await issuer.sign({ [claim]: value }));
        expect([401, 403]).toContain(status);
      }),
      { numRuns: 300 },
    );
    expect(await takeCharges(service)).toBe(0);
  });

  test('is refused if any character is changed', async () => {
    const token = await issuer.sign();
    const letters = 'ABCXYZabcxyz0189-_.=';
    await fc.assert(
      fc.asyncProperty(
        // Not the last character: some of its bits are padding.
        fc.nat({ max: token.length - 2 }),
        fc.constantFrom(...letters.split('')),
        async (at, letter) => {
          fc.pre(token[at] !== letter);
          expect(await pay(service, token.slice(0, at) + letter + token.slice(at + 1))).toEqual(unauthorized);
        },
      ),
      { numRuns: 300 },
    );
    expect(await takeCharges(service)).toBe(0);
  });
});

function withoutSignature(token: string, alg: string): string {
  const [, payload] = token.split('.');
  return `${encode({ alg, kid: 'first' })}.${payload}.`;
}

/** Signs with HS256 and the public key, which anybody can fetch, as the secret. */
async function withPublicKeyAsSecret(token: string): Promise<string> {
  const publicKey = await importJWK(issuer.keys.get('first')!.publicJwk, 'RS256', { extractable: true });
  const signed = `${encode({ alg: 'HS256', kid: 'first' })}.${token.split('.')[1]}`;
  const secret = await exportSPKI(publicKey as CryptoKey);
  return `${signed}.${createHmac('sha256', secret).update(signed).digest('base64url')}`;
}

async function withOwnKey(): Promise<string> {
  const own = await issuer.addKey('own', { served: false });
  return issuer.sign({}, own, { jwk: own.publicJwk });
}

describe('with tokens required', () => {
  test.each(['/startupz', '/livez', '/readyz', '/version', '/openapi.json'])(
    '%s needs no token',
    async (path) => {
      expect((await ask(service.url + path)).status).toBe(200);
    },
  );

  test.each([
    ['an array', '/payments/pay', `[${body}]`],
    ['the Antaeus form', '/rest/v1/payments', '{"currency":"EUR","value":1,"customer_id":1}'],
    ['a reset', '/reset', ''],
    ['an unknown path', '/nowhere', ''],
    ['a path in capitals', '/PAYMENTS/PAY/', body],
  ])('%s needs a token', async (_name, path, payment) => {
    await pay(service, await issuer.sign());
    expect(await post(service.url + path, payment)).toEqual(unauthorized);
    expect(await takeCharges(service)).toBe(1);
  });

  test('a reset with a token succeeds', async () => {
    expect((await post(`${service.url}/reset`, '', bearing(await issuer.sign()))).status).toBe(200);
  });
});

describe('signing keys', () => {
  afterEach(() => {
    issuer.fault = undefined;
  });

  test('a new key is fetched, and the old ones stay valid', async () => {
    const old = await issuer.sign();
    expect(await pay(service, old)).toEqual(paid);
    const rotated = await issuer.sign({}, await issuer.addKey('rotated'));
    await expect.poll(() => pay(service, rotated), { timeout: 5_000 }).toEqual(paid);
    expect(await pay(service, old)).toEqual(paid);
  });

  test('tokens with an unknown key cause at most one fetch a second', async () => {
    const token = await issuer.sign({}, await issuer.addKey('unknown', { served: false }));
    const before = issuer.asked.length;
    const start = performance.now();
    for (let n = 0; n < 50; n += 1) expect(await pay(service, token)).toEqual(unauthorized);
    expect(issuer.asked.length - before).toBeLessThanOrEqual(2 + (performance.now() - start) / 1_000);
  });

  test.each([
    ['no answer', { status: 0, body: '' }],
    ['401', { status: 401, body: '{}' }],
    ['500', { status: 500, body: '' }],
    ['a redirect', { status: 302, body: '' }],
    ['no JSON', { status: 200, body: '<html>' }],
    ['no keys', { status: 200, body: '{}' }],
  ])('payments get 503 while fetching the keys ends in %s', async (_name, fault) => {
    issuer.fault = fault;
    await using fresh = await startService(paymentProvider, issuer.env);
    const token = await issuer.sign();
    const start = performance.now();
    const response = await fetch(`${fresh.url}/payments/pay`, {
      method: 'POST',
      body,
      headers: bearing(token),
    });
    expect(response.status).toBe(503);
    expect(response.headers.get('Retry-After')).toBe('1');
    expect(await response.json()).toEqual({ error: 'no token can be checked' });
    // The timeout of invoice-app is two seconds.
    expect(performance.now() - start).toBeLessThan(2_000);
    issuer.fault = undefined;
    expect(await pay(fresh, token)).toEqual(paid);
    expect(await takeCharges(fresh)).toBe(1);
  });

  test('payments get 503 within two seconds if the keys trickle in', async () => {
    await using trickling = await listen((_request, response) => {
      response.write('{"keys":[');
      const trickle = setInterval(() => response.write(' '), 300);
      response.on('close', () => clearInterval(trickle));
    });
    const env = { ...issuer.env, TOKEN_JWKS_URL: trickling.url };
    await using fresh = await startService(paymentProvider, env);
    const start = performance.now();
    expect((await pay(fresh, await issuer.sign())).status).toBe(503);
    expect(performance.now() - start).toBeLessThan(2_000);
  });

  test.each<[string, (good: JWK) => object]>([
    ['a key of 1024 bits', () => shortKey()],
    ['a key without its numbers', ({ kty, kid, alg, use }) => ({ kty, kid, alg, use })],
    ['a key with an invalid modulus', (good) => ({ ...good, n: '!' })],
  ])('payments get 503 while the issuer serves %s', async (_name, spoil) => {
    await using own = await Issuer.start();
    const { publicJwk } = own.keys.get('first')!;
    const { kid } = publicJwk;
    const spoiled = { ...spoil(publicJwk), kid, alg: 'RS256', use: 'sig' };
    own.fault = { status: 200, body: JSON.stringify({ keys: [spoiled] }) };
    await using fresh = await startService(paymentProvider, own.env);
    expect(await pay(fresh, await own.sign())).toEqual({
      status: 503,
      body: { error: 'no token can be checked' },
    });
    expect(await takeCharges(fresh)).toBe(0);
    own.fault = undefined;
    await using later = await startService(paymentProvider, own.env);
    expect(await pay(later, await own.sign())).toEqual(paid);
  });

  test('fetched keys outlast a failure of the issuer, and replicas without keys answer 503 until it ends', async () => {
    await using own = await Issuer.start();
    await using fresh = await startService(paymentProvider, own.env);
    await using late = await startService(paymentProvider, own.env);
    const token = await own.sign();
    expect(await pay(fresh, token)).toEqual(paid);
    await own.close();
    expect(await pay(fresh, token)).toEqual(paid);
    expect((await pay(late, token)).status).toBe(503);
    await own.listen();
    expect(await pay(late, token)).toEqual(paid);
  });

  test('the keys are fetched with the current token of TOKEN_FILE', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'payloop-token-'));
    try {
      const file = join(folder, 'token');
      await using own = await Issuer.start();
      await using fresh = await startService(paymentProvider, { ...own.env, TOKEN_FILE: file });
      // The file does not exist yet.
      expect((await pay(fresh, await own.sign())).status).toBe(503);
      expect(own.asked).toEqual([]);
      writeFileSync(file, 'one\n');
      expect(await pay(fresh, await own.sign())).toEqual(paid);
      writeFileSync(file, 'other\n');
      const rotated = await own.sign({}, await own.addKey('rotated'));
      await expect.poll(() => pay(fresh, rotated), { timeout: 5_000 }).toEqual(paid);
      expect(own.asked).toEqual(['Bearer one', 'Bearer other']);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

/** A key of a length that was usual twenty years ago. */
function shortKey(): object {
  return generateKeyPairSync('rsa', { modulusLength: 1024 }).publicKey.export({ format: 'jwk' });
}

describe('settings', () => {
  const all = {
    AUTH: 'required',
    TOKEN_AUDIENCE: 'payment-provider',
    TOKEN_ISSUER: 'https://kubernetes.default.svc.cluster.local',
    TOKEN_SUBJECTS: subject,
    TOKEN_JWKS_URL: 'https://kubernetes.default.svc/openid/v1/jwks',
  };
  const none = Object.fromEntries(Object.keys(all).map((name) => [name, '']));
  test.each<[Record<string, string>, RegExp]>([
    [{ AUTH: 'on' }, /^AUTH must be one of required, off, not "on"$/],
    [{ TOKEN_AUDIENCE: '' }, /^TOKEN_AUDIENCE must be set where AUTH is required: the audience /],
    [{ TOKEN_ISSUER: '' }, /^TOKEN_ISSUER must be set where AUTH is required: the issuer /],
    [{ TOKEN_SUBJECTS: '' }, /^TOKEN_SUBJECTS must be set where AUTH is required: service accounts /],
    [{ TOKEN_JWKS_URL: '' }, /^TOKEN_JWKS_URL must be set where AUTH is required: the https URL /],
    [{ AUTH: '' }, /^AUTH must be required or off where TOKEN_AUDIENCE is set$/],
    [
      { AUTH: '', TOKEN_AUDIENCE: '', TOKEN_ISSUER: '' },
      /^AUTH must be required or off where TOKEN_SUBJECTS is set$/,
    ],
    [
      { TOKEN_SUBJECTS: 'invoice-app' },
      /^TOKEN_SUBJECTS must be service accounts such as .*, not "invoice-app"$/,
    ],
    [{ TOKEN_SUBJECTS: `${subject},` }, /^TOKEN_SUBJECTS must be service accounts such as /],
    [{ TOKEN_SUBJECTS: 'system:serviceaccount:*:*' }, /^TOKEN_SUBJECTS must be service accounts such as /],
    [
      { TOKEN_JWKS_URL: 'http://issuer/keys' },
      /^TOKEN_JWKS_URL must be the https URL .*, not "http:\/\/issuer\/keys"$/,
    ],
    [{ TOKEN_JWKS_URL: 'http://127.0.0.1.evil/keys' }, /^TOKEN_JWKS_URL must be the https URL /],
    [{ TOKEN_JWKS_URL: 'file:///keys' }, /^TOKEN_JWKS_URL must be the https URL /],
    [{ TOKEN_JWKS_URL: 'keys' }, /^TOKEN_JWKS_URL must be the https URL /],
    [{ ...none, ENVIRONMENT: 'prod' }, /^AUTH must be required or off when ENVIRONMENT is prod$/],
    [
      { ...none, ENVIRONMENT: '' },
      /^AUTH must be required or off when ENVIRONMENT is unset \(default: prod\)$/,
    ],
    [
      { ...none, ENVIRONMENT: 'prod', TOKEN_AUDIENCE: 'x' },
      /^AUTH must be required or off where TOKEN_AUDIENCE is set$/,
    ],
  ])('%o prevents the start with a one-line error', async (change, message) => {
    await expect(startUnready(paymentProvider, { ...all, ...change })).rejects.toThrow(
      expect.objectContaining({ name: 'ConfigError', message: expect.stringMatching(message) }),
    );
  });

  test.each<[string, Record<string, string>]>([
    ['no setting', {}],
    ['AUTH=off alone', { AUTH: 'off' }],
    ['AUTH=off in prod', { AUTH: 'off', ENVIRONMENT: 'prod' }],
    ['AUTH=off and the rest', { ...all, AUTH: 'off' }],
  ])('no token is needed with %s', async (_name, env) => {
    await using open = await startService(paymentProvider, env);
    expect(await post(`${open.url}/payments/pay`, body)).toEqual(paid);
  });
});
