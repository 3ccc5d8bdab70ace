// @module-tag slow
import { execFile } from 'node:child_process';
import { appendFileSync, cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { hashSource } from '../../libraries/chassis/src/source.ts';
import { listen } from '../support/start-service.ts';

const root = resolve(import.meta.dirname, '../..');
const script = join(root, 'test.sh');

interface Invoice {
  InvoiceId: string;
  Value: number;
  IsPaid: boolean;
}

/**
 * Runs test.sh against a deployment without /version that answers POST /invoices/pay with `pay`.
 * @param resets its answers to POST /reset in order, the last one repeated; undefined closes the connection
 */
async function runTest(
  pay: (invoices: Invoice[]) => [status: number, body: unknown],
  resets: (number | undefined)[] = [404],
) {
  const invoices = [1, 2].map((n) => ({ InvoiceId: `I${n}`, Value: n, IsPaid: false }));
  await using server = await listen(({ method, url }, response) => {
    const answer = (): [number, unknown] => {
      if (url === '/invoices') return [200, invoices];
      if (url === '/reset') return [resets[0]!, {}];
      return method === 'POST' && url === '/invoices/pay' ? pay(invoices) : [404, {}];
    };
    const [status, body] = answer();
    if (url === '/reset' && resets.length > 1) resets.shift();
    if (status === undefined) response.destroy();
    else response.writeHead(status).end(JSON.stringify(body));
  });
  return await new Promise<{ passed: boolean; stdout: string; stderr: string }>((done) => {
    execFile(script, [server.url], (error, stdout, stderr) =>
      done({ passed: error === null, stdout, stderr }),
    );
  });
}

const payAll = (invoices: Invoice[]) => {
  for (const invoice of invoices) invoice.IsPaid = true;
};

test('passes if everything is paid, and lists the checks that it skipped', async () => {
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

test('retries the reset after a closed connection and after a 503', async () => {
  const pay = (invoices: Invoice[]): [number, unknown] => {
    payAll(invoices);
    return [200, {}];
  };
  const { passed, stdout } = await runTest(pay, [undefined, 503, undefined, 200]);
  expect([passed, stdout]).toEqual([true, expect.stringContaining('ok 2 - the invoices are reset\n')]);
  expect(stdout).toMatch(/\n# the invoices were reset, and are paid now: .+\n$/);
});

test('pays again after a decline', async () => {
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
    'a pay that answers 502 although everything is paid',
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

const source = { app: hashSource(root, 'invoice-app'), provider: hashSource(root, 'payment-provider') };
const other = 'f'.repeat(64);

/** Runs test.sh against a deployment that answers with `version`. @param suffix the end of the URL */
async function runAgainst(version: (url: string) => [status: number, body: string], suffix = '', env = {}) {
  await using server = await listen((request, response) => {
    const [status, body] = version(request.url ?? '');
    response.writeHead(status).end(body);
  });
  const start = performance.now();
  return await new Promise<{ stdout: string; stderr: string; ms: number }>((done) => {
    execFile(
      script,
      [`${server.url}${suffix}`],
      { env: { ...process.env, ...env } },
      (_error, stdout, stderr) => done({ stdout, stderr, ms: performance.now() - start }),
    );
  });
}

test.each<[string, object, number, RegExp]>([
  [
    'invoice-app',
    { source: other, failed: source.app, provider: { source: source.provider } },
    200,
    /: invoice-app does not start with the code in this folder, see its log$/,
  ],
  [
    'payment-provider',
    { source: source.app, provider: { source: other, failed: source.provider } },
    200,
    /: payment-provider does not start with the code in this folder, see its log$/,
  ],
  [
    'invoice-app, which never started at all',
    { error: `invoice-app does not start, see its log (source ${source.app})` },
    503,
    /: invoice-app does not start with the code in this folder, see its log$/,
  ],
])('fails at once if this code does not start: %s', async (_name, version, status, message) => {
  const { stderr, ms } = await runAgainst(() => [status, JSON.stringify(version)]);
  expect(stderr.trim()).toMatch(message);
  expect(ms).toBeLessThan(10_000);
});

test('keeps waiting if only other code failed to start', { timeout: 60_000 }, async () => {
  let calls = 0;
  const version = (): [number, string] => {
    calls += 1;
    const failed = calls < 5 ? other : source.app;
    return [200, JSON.stringify({ source: other, failed, provider: { source: source.provider } })];
  };
  expect((await runAgainst(version)).stderr).toContain('invoice-app does not start');
  expect(calls).toBe(5);
});

test.each(['', '/', '//'])('accepts a URL that ends in %j', async (suffix) => {
  const paths = new Set<string>();
  const answer = (url: string): [number, string] => {
    paths.add(url);
    return [url === '/invoices' ? 200 : 404, '[]'];
  };
  const { stdout } = await runAgainst(answer, suffix);
  expect([...paths].slice(0, 2)).toEqual(['/version', '/invoices']);
  expect(stdout).toContain('ok 1 - every replica runs the code in this folder # SKIP no /version here');
});

test.each([
  ['a terminal sequence', '\u001B[2J\u001B]0;title\u0007gone'],
  ['a one-byte sequence', '\u009B31mred'],
  ['cursor movements', 'a\rb\bc\u007F'],
  ['line feeds', 'a\nb\n'],
  ['a NUL', 'a\0b'],
])('prints no control characters: %s', async (_which, text) => {
  for (const status of [200, 400]) {
    const { stdout, stderr } = await runAgainst((url) => {
      const statuses: Record<string, number> = { '/version': 404, '/reset': status };
      return [statuses[url] ?? 200, text];
    });
    expect(stderr).toMatch(/^payment test failed: .*\n$/);
    expect(stdout + stderr).not.toMatch(/[^\P{Cc}\n]/u);
  }
});

test('prints no control characters of a hash or an instance name', { timeout: 60_000 }, async () => {
  const version = { source: '\u001B[2J', instance: '\u001B]0;title\u0007' };
  const { stderr } = await runAgainst(() => [200, JSON.stringify(version)]);
  expect(stderr).toMatch(/runs other code:.*\n$/);
  expect(stderr).not.toMatch(/[^\P{Cc}\n]/u);
});

test('ignores CDPATH', async () => {
  const elsewhere = mkdtempSync(join(tmpdir(), 'payloop-cdpath-'));
  mkdirSync(join(elsewhere, basename(root)));
  const env = { ...process.env, CDPATH: elsewhere };
  await using server = await listen(
    (_request, response) => void response.end(JSON.stringify({ source: other, failed: source.app })),
  );
  const options = { env, cwd: dirname(root) };
  const stderr = await new Promise<string>((done) =>
    execFile('bash', [`${basename(root)}/test.sh`, server.url], options, (_error, _stdout, text) =>
      done(text),
    ),
  );
  rmSync(elsewhere, { recursive: true });
  // It compared the hash of this folder, so it did not enter the other one.
  expect(stderr).toContain('invoice-app does not start with the code in this folder');
});

test('ignores .curlrc and proxies', async () => {
  const home = mkdtempSync(join(tmpdir(), 'payloop-home-'));
  writeFileSync(join(home, '.curlrc'), 'include\nproxy = http://127.0.0.1:9\n');
  const dead = 'http://127.0.0.1:9';
  const env = {
    HOME: home,
    CURL_HOME: home,
    http_proxy: dead,
    all_proxy: dead,
    no_proxy: '',
    CDPATH: `${home}:/`,
  };
  const { stdout } = await runAgainst((url) => [url === '/invoices' ? 200 : 404, '[]'], '', env);
  rmSync(home, { recursive: true });
  expect(stdout).toContain('ok 3 - there are unpaid invoices # SKIP nothing unpaid');
});

describe('with a third service', () => {
  const ready = 'every replica runs the code in this folder';

  interface Answers {
    /** Its answers to /version, from the hash of its code and the number of earlier calls; undefined closes each. */
    refunds?: (own: string, calls: number) => object;
    args?: (url: string) => string[];
    env?: (port: string) => NodeJS.ProcessEnv;
    /** The data of its service.yaml, given its port. */
    data?: (port: string) => string;
  }

  /** Runs test.sh in a copy with a further service, refunds, against an invoice-app that runs this code. */
  async function runWithRefunds({ refunds, args = (url) => [url, '1'], env, data }: Answers) {
    const folder = mkdtempSync(join(tmpdir(), 'payloop-third-'));
    onTestFinished(() => rmSync(folder, { recursive: true }));
    for (const name of ['test.sh', 'kustomize/base', 'libraries/chassis/src', 'services'])
      cpSync(join(root, name), join(folder, name), { recursive: true });
    appendFileSync(join(folder, 'kustomize/base/kustomization.yaml'), '  - ../../services/refunds/deploy\n');
    for (const part of ['src', 'deploy'])
      mkdirSync(join(folder, 'services/refunds', part), { recursive: true });
    writeFileSync(join(folder, 'services/refunds/src/main.ts'), '// refunds');
    const [app, provider, own] = ['invoice-app', 'payment-provider', 'refunds'].map((name) =>
      hashSource(folder, name),
    );
    let calls = 0;
    await using third = await listen((request, response) => {
      if (refunds === undefined) request.destroy();
      else response.end(JSON.stringify(refunds(own!, calls++)));
    });
    const { port } = new URL(third.url);
    const described = data?.(port) ?? `name: refunds\n  port: '${port}'`;
    writeFileSync(join(folder, 'services/refunds/deploy/service.yaml'), `data:\n  ${described}\n`);
    let instance = 0;
    await using server = await listen((request, response) => {
      instance += 1;
      const isVersion = request.url?.endsWith('/version');
      response.writeHead(isVersion ? 200 : 404);
      response.end(
        JSON.stringify(isVersion ? { source: app, instance, provider: { source: provider, instance } } : {}),
      );
    });
    const start = performance.now();
    return await new Promise<{ stdout: string; stderr: string; ms: number; own: string; calls: number }>(
      (done) =>
        execFile(
          join(folder, 'test.sh'),
          args(server.url),
          { env: { ...process.env, ...env?.(port), http_proxy: server.url } },
          (_error, stdout, stderr) =>
            done({ stdout, stderr, ms: performance.now() - start, own: own!, calls }),
        ),
    );
  }

  test('waits for its code, and prints the hash', async () => {
    const { stdout, own, calls } = await runWithRefunds({
      refunds: (code, count) => ({ source: count < 3 ? other : code }),
    });
    expect(stdout).toMatch(
      new RegExp(`ok 1 - ${ready}\n# invoice-app \\w{64}\n# payment-provider \\w{64}\n# refunds ${own}\n`),
    );
    expect(calls).toBe(4);
  });

  test.each<[string, Pick<Answers, 'data' | 'env'>]>([
    ['an unquoted port', { data: (port) => `port: ${port} # free` }],
    ['a port in double quotes', { data: (port) => `port: "${port}"` }],
    [
      'REFUNDS_PORT, which takes precedence',
      { data: () => 'port: 1', env: (port) => ({ REFUNDS_PORT: port }) },
    ],
  ])('calls it at %s', async (_which, settings) => {
    const { stdout } = await runWithRefunds({ refunds: (own) => ({ source: own }), ...settings });
    expect(stdout).toContain(`\nok 1 - ${ready}\n`);
  });

  test('fails at once if it does not start with this code', async () => {
    const { stderr, ms } = await runWithRefunds({ refunds: (own) => ({ source: other, failed: own }) });
    expect(stderr.trim()).toBe(
      `payment test failed: ${ready}: refunds does not start with the code in this folder, see its log`,
    );
    expect(ms).toBeLessThan(10_000);
  });

  test(
    'fails without an answer, without a version, and with too few processes',
    { timeout: 60_000 },
    async () => {
      const [silent, empty, few] = await Promise.all([
        runWithRefunds({}),
        runWithRefunds({ refunds: () => ({ error: 'no such page' }) }),
        runWithRefunds({ refunds: (own) => ({ source: own, instance: 'one' }), args: (url) => [url, '2'] }),
      ]);
      expect(silent.stderr).toMatch(
        /: after 20 s: http:\S+\/version does not say which code refunds runs: curl: .*\n$/,
      );
      expect(empty.stderr).toMatch(
        /\/version does not say which code refunds runs: \{"error":"no such page"\}\n$/,
      );
      expect(few.stderr).toMatch(/: after 20 s: only 1 of refunds answered, not 2\n$/);
    },
  );

  test('names the service.yaml that has no port', async () => {
    const { stderr, stdout } = await runWithRefunds({ data: () => 'name: refunds' });
    expect(stderr.trim()).toBe(
      `payment test failed: ${ready}: services/refunds/deploy/service.yaml has no port`,
    );
    expect(stdout).toContain('not ok 1 - ');
  });

  test('skips it if the URL is not on this machine, and says so', async () => {
    const { stdout } = await runWithRefunds({
      args: () => ['http://far.example', '1'],
    });
    expect(stdout).toContain('# the code of refunds is not checked: no port leads to it from here\n');
    expect(stdout).toMatch(
      new RegExp(`ok 1 - ${ready}\n# invoice-app .*\n# payment-provider .*\n(?!# refunds)`),
    );
  });
});
