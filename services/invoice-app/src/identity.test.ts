// @module-tag slow
import { spawn } from 'node:child_process';
import { resolve } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { freePort } from '../../../local/ports.ts';
import { clockTolerance } from '../../payment-provider/src/auth.ts';
import * as paymentProvider from '../../payment-provider/src/service.ts';
import { createDatabase } from '../../../tests/support/database.ts';
import { Issuer, subject } from '../../../tests/support/issuer.ts';
import { ProjectedToken } from '../../../tests/support/projected-token.ts';
import { brokenRules } from '../../../tests/payments/rules.ts';
import {
  ask,
  listen,
  post,
  startService,
  untilReady,
  type RunningService,
} from '../../../tests/support/start-service.ts';
import * as services from '../../../tests/support/app-and-provider.ts';
import { connect, pay } from '../../../tests/support/app-and-provider.ts';

let issuer: Issuer;
let provider: RunningService;
beforeAll(async () => {
  issuer = await Issuer.start();
  provider = await startService(paymentProvider, { ALLOW_RESET: 'true', ...issuer.env });
});
beforeEach(async () => {
  await using ledger = await connect(provider);
  await ledger.query('DELETE FROM payments');
});
afterAll(async () => {
  await provider[Symbol.asyncDispose]();
  await issuer.close();
});

/** Starts invoice-app with a provider at `url` and the file of its token. */
const startApp = (
  token: ProjectedToken,
  env: Record<string, string> = {},
  { url }: { url: string } = provider,
) => services.startApp({ url }, { TOKEN_FILE: token.file, ...env });

const allUnknown = {
  status: 502,
  body: {
    error: 'the payment provider gave no definite answer',
    paid: 0,
    declined: 0,
    refused: 0,
    unknown: 3,
  },
};
const noneAsked = {
  status: 502,
  body: {
    error: 'the payment provider was not called for every invoice',
    paid: 0,
    declined: 0,
    refused: 0,
    unknown: 0,
    left: 3,
  },
};

const readKeys = async (database: Client) =>
  (await database.query('SELECT id, attempt_key FROM invoices ORDER BY id')).rows;

/** Starts a server that records the path and `Authorization` of each request and answers with `status`. */
async function startServer(status: number) {
  const asked: (string | undefined)[][] = [];
  const server = await listen((request, response) => {
    asked.push([request.url, request.headers.authorization]);
    request.resume().on('end', () => response.writeHead(status).end('{}'));
  });
  return { ...server, asked };
}

test('payments and resets carry the token, /version does not', async () => {
  await using server = await startServer(200);
  using token = new ProjectedToken();
  token.put('abc\n');
  await using app = await startApp(token, {}, server);
  await post(`${app.url}/reset`);
  await pay(app);
  await ask(`${app.url}/version`);
  const seen = new Set(server.asked.map(String));
  expect([...seen]).toEqual(['/reset,Bearer abc', '/payments/pay,Bearer abc', '/version,']);
});

test('no token is sent if TOKEN_FILE is not set', async () => {
  await using server = await startServer(200);
  using token = new ProjectedToken();
  await using app = await startApp(token, { TOKEN_FILE: '' }, server);
  await pay(app);
  expect(server.asked[0]).toEqual(['/payments/pay', undefined]);
});

test('a provider that accepts only tokens of invoice-app charges its payments and resets', async () => {
  using token = new ProjectedToken();
  token.put(await issuer.sign());
  await using app = await startApp(token);
  expect(await pay(app)).toEqual({ status: 200, body: {} });
  expect(await post(`${app.url}/reset`)).toEqual({ status: 200, body: {} });
  await using ledger = await connect(provider);
  expect((await ledger.query('SELECT FROM payments')).rows).toEqual([]);
});

test.each<[string, string | undefined]>([
  ['is missing', undefined],
  ['is empty', ''],
  ['holds no token', 'two\nlines'],
])(
  'with a token file that %s, no request is sent and the invoices keep their keys',
  async (_name, content) => {
    await using server = await startServer(200);
    using token = new ProjectedToken();
    if (content !== undefined) token.put(content);
    await using app = await startApp(token, {}, server);
    await using database = await connect(app);
    const keys = await readKeys(database);
    expect(await pay(app)).toEqual(noneAsked);
    const reset = await post(`${app.url}/reset`);
    expect(reset).toMatchObject({
      status: 502,
      body: { error: expect.stringMatching(/^the payment provider was not reset: TOKEN_FILE /) },
    });
    expect(server.asked).toEqual([]);
    expect(await readKeys(database)).toEqual(keys);
  },
);

test.each([401, 403])(
  'a token refused with %d is no decline, and the next one pays under the same keys',
  async (status) => {
    using token = new ProjectedToken();
    const wrong = status === 401 ? { aud: ['another'] } : { sub: `${subject}-2` };
    token.put(await issuer.sign(wrong));
    await using app = await startApp(token);
    await using database = await connect(app);
    await using ledger = await connect(provider);
    const keys = await readKeys(database);
    expect(await pay(app)).toEqual(allUnknown);
    expect((await database.query('SELECT FROM payment_events')).rows).toEqual([]);
    token.put(await issuer.sign());
    expect(await pay(app)).toEqual({ status: 200, body: {} });
    expect(await readKeys(database)).toEqual(keys);
    expect(await brokenRules({ app: database, provider: ledger })).toEqual([]);
  },
);

test(
  'rotating the token in time fails no payment, and each invoice is charged once',
  { timeout: 60_000 },
  async () => {
    using token = new ProjectedToken();
    /** Puts a token that the provider accepts for less than three seconds, its clock tolerance included. */
    const rotate = async () =>
      token.put(await issuer.sign({ exp: Math.floor(Date.now() / 1_000) - clockTolerance + 3 }));
    await rotate();
    await using app = await startApp(token, { SEED_INVOICES: '0' });
    await using database = await connect(app);
    const rotating = new AbortController();
    const rotated = (async () => {
      for (; !rotating.signal.aborted; await sleep(20)) await rotate();
    })();
    const answers: unknown[] = [];
    // Longer than two tokens are valid.
    for (const end = performance.now() + 6_000; performance.now() < end || answers.length < 5;) {
      await database.query(
        `INSERT INTO invoices (id, customer_id, amount, currency)
       SELECT (SELECT coalesce(max(id), 0) FROM invoices) + n, 1, n, 'EUR' FROM generate_series(1, 50) AS n`,
      );
      await database.query(`
      TRUNCATE batches;
      INSERT INTO batches (first_id, last_id)
        SELECT n, n + 1 FROM generate_series(1, (SELECT max(id) FROM invoices), 2) AS n`);
      answers.push(await pay(app));
    }
    rotating.abort();
    await rotated;
    expect(new Set(answers.map((answer) => JSON.stringify(answer)))).toEqual(
      new Set(['{"status":200,"body":{}}']),
    );
    await using ledger = await connect(provider);
    expect(await brokenRules({ app: database, provider: ledger })).toEqual([]);
    const { rows } = await database.query('SELECT FROM invoices WHERE paid_at IS NULL');
    expect(rows).toEqual([]);
  },
);

test('the logs contain the reasons, but never a token', async () => {
  using token = new ProjectedToken();
  const databases = { app: await createDatabase(), provider: await createDatabase() };
  const ports = { app: await freePort(), provider: await freePort() };
  const start = (service: string, env: Record<string, string>) => {
    const child = spawn('node', [`services/${service}/src/main.ts`], {
      cwd: resolve(import.meta.dirname, '../../..'),
      env: {
        PATH: process.env.PATH,
        HOST: '127.0.0.1',
        ENVIRONMENT: 'dev',
        METRICS_PORT: '0',
        LOG_LEVEL: 'debug',
        ...env,
      },
    });
    return {
      child,
      output: Promise.all([text(child.stdout), text(child.stderr)]).then((all) => all.join('')),
    };
  };
  const providerProcess = start('payment-provider', {
    ...issuer.env,
    PORT: `${ports.provider}`,
    DATABASE_URL: databases.provider.url,
  });
  const appProcess = start('invoice-app', {
    PORT: `${ports.app}`,
    DATABASE_URL: databases.app.url,
    PAYMENT_PROVIDER_URL: `http://127.0.0.1:${ports.provider}/payments/pay`,
    TOKEN_FILE: token.file,
  });
  const pays = () => post(`http://127.0.0.1:${ports.app}/invoices/pay`);
  const secrets: string[] = [];
  const put = (value: string) => {
    secrets.push(value);
    token.put(value);
  };
  try {
    await Promise.all(Object.values(ports).map((port) => untilReady(`http://127.0.0.1:${port}`)));
    expect(await pays()).toEqual(noneAsked);
    put('one-secret\tanother-secret');
    expect(await pays()).toEqual(noneAsked);
    issuer.fault = { status: 500, body: '' };
    put(await issuer.sign());
    expect(await pays()).toEqual(allUnknown);
    issuer.fault = undefined;
    put(await issuer.sign({ aud: ['another'] }));
    expect(await pays()).toEqual(allUnknown);
    put(await issuer.sign({ sub: `${subject}-2` }));
    expect(await pays()).toEqual(allUnknown);
    put(await issuer.sign());
    expect(await pays()).toEqual({ status: 200, body: {} });
  } finally {
    for (const { child } of [appProcess, providerProcess]) child.kill();
  }
  const [asked, provided] = await Promise.all([appProcess.output, providerProcess.output]);
  await Promise.all([databases.app.drop(), databases.provider.drop()]);

  expect(asked).toContain('the provider was not called: TOKEN_FILE cannot be read: ENOENT');
  expect(asked).toContain(`the provider was not called: TOKEN_FILE ${token.file} holds no token`);
  expect(asked).toContain('the provider refused the token');
  expect(provided).toContain(`${subject}-2`);
  expect(provided).toContain('unexpected \\"aud\\" claim value');
  expect(
    provided.match(/no token can be checked: the keys of .* cannot be loaded: it answered 500/g),
  ).toHaveLength(1);
  for (const secret of secrets) {
    for (const part of secret.split(/[.\t]/)) {
      expect(asked + provided).not.toContain(part);
    }
  }
});
