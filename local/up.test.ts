// @module-tag slow
import { execFile, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { text as readAll } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { readServices, variablePrefix } from '../scripts/services.ts';
import { Debugger } from '../tests/support/debugger.ts';
import { withoutMake } from '../tests/support/make.ts';
import { linkPackages, ownServices, removeAddedServices } from '../tests/support/tree.ts';
import { readOverlay } from './overlay.ts';
import { freePort, whyTaken } from './ports.ts';
import { exists, signal } from './processes.ts';

const run = promisify(execFile);

/** The project's own services, without any that were added. */
const services = readServices().filter(({ name }) => ownServices.includes(name));
const prefixes = [...services.map(variablePrefix), 'REFUNDS'];
const portVariables = [
  'POSTGRES_PORT',
  ...prefixes.flatMap((prefix) => [`${prefix}_PORT`, `${prefix}_INSPECT_PORT`]),
];

const base = 'kustomize/base/kustomization.yaml';
const original = path.resolve(import.meta.dirname, '..');
let temporary: string;
let clone: string;
let env: NodeJS.ProcessEnv;
let url: string;
let up: Up | undefined;

/** Creates a copy of the tree that only its owner can read, with its own workspaces and the installed packages. */
beforeAll(async () => {
  temporary = await fs.realpath(await fs.mkdtemp(path.join(os.tmpdir(), 'payloop-test-')));
  await fs.chmod(temporary, 0o711);
  clone = path.join(temporary, 'clone');
  await fs.mkdir(clone, { mode: 0o700 });
  for (const name of [
    'services',
    'libraries',
    'local',
    'scripts',
    'kustomize',
    'Makefile',
    'test.sh',
    'mise.toml',
    'package.json',
    'package-lock.json',
  ]) {
    await fs.cp(path.join(original, name), path.join(clone, name), { recursive: true });
  }
  await removeAddedServices(clone);
  await linkPackages(clone);

  env = { ...withoutMake(process.env), TMPDIR: temporary, MODE: 'local', OVERLAY: 'dev', LOG_LEVEL: 'warn' };
  for (const variable of portVariables) env[variable] = String(await freePort());
  url = `http://127.0.0.1:${env.INVOICE_APP_PORT}`;
});
afterEach(async () => {
  if (up && up.child.exitCode === null && up.child.signalCode === null) await up.end('SIGTERM');
});
afterAll(() => fs.rm(temporary, { recursive: true, force: true }));

interface Up {
  child: ChildProcess;
  /** Waits for a line that matches, after the last line returned. */
  line(pattern: RegExp): Promise<string>;
  /** The lines after the last one that `line` returned. */
  rest(): string[];
  /** Signals the whole group, as a terminal does, and resolves with make's exit code or signal. */
  end(name: NodeJS.Signals): Promise<number | NodeJS.Signals | null>;
}

function makeUp(target = 'up', changes: NodeJS.ProcessEnv = {}): Up {
  const options = { cwd: clone, env: { ...env, ...changes } };
  // One pipe for both streams keeps their lines in order.
  const child = spawn('sh', ['-c', 'exec make "$0" 2>&1', target], {
    ...options,
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let said = '';
  let read = 0;
  child.stdout.setEncoding('utf8').on('data', (part: string) => (said += part));
  const ended = new Promise<number | NodeJS.Signals | null>((resolve) => {
    child.once('close', (code, by) => resolve(by ?? code));
  });
  return {
    child,
    async line(pattern) {
      for (const until = Date.now() + 20_000; Date.now() < until; await delay(20)) {
        const lines = said.slice(read, said.lastIndexOf('\n') + 1).split('\n');
        const at = lines.findIndex((line) => pattern.test(line));
        if (at === -1) continue;
        read += lines.slice(0, at + 1).join('\n').length + 1;
        return lines[at] ?? '';
      }
      throw new Error(`no line like ${pattern} in:\n${said.slice(read)}`);
    },
    rest: () => said.slice(read).split('\n').filter(Boolean),
    end(name) {
      process.kill(-child.pid!, name);
      return ended;
    },
  };
}

async function state(): Promise<{ owner: number; groups: number[] }> {
  return JSON.parse(await fs.readFile(path.join(clone, '.payloop/processes.json'), 'utf8'));
}

function port(variable: string): number {
  return Number(env[variable]);
}

async function expectNothingLeft(groups: number[]): Promise<void> {
  expect(groups.filter((pid) => exists(-pid))).toEqual([]);
  for (const variable of portVariables) expect(await whyTaken(variable, port(variable))).toBeUndefined();
}

test.for([
  { target: 'up', OVERLAY: 'dev', tilt: 'up -- --overlay=dev' },
  { target: 'debug', OVERLAY: 'dev', tilt: 'up -- --overlay=dev --debug' },
  { target: 'up', OVERLAY: 'prod', tilt: 'up -- --overlay=prod' },
])(
  'make $target with $OVERLAY creates the cluster, runs Tilt, and returns its exit code',
  async ({ target, OVERLAY, tilt }) => {
    const tools = path.join(temporary, 'tools');
    await fs.mkdir(tools, { recursive: true });
    for (const tool of ['docker', 'ctlptl', 'kind', 'kubectl', 'kustomize', 'tilt']) {
      const version = `[ "$1" = version ] && grep '${tool}"* = ' mise.toml && exit`;
      const docker = `case "$1" in version) echo '{"Server":{"Components":[{"Name":"Engine"}]}}'; exit ;; context) echo unix:///; exit ;; esac`;
      const script = `#!/bin/sh\n${tool === 'docker' ? docker : version}\necho "${tool} $*"\n${tool === 'tilt' ? 'exit 3' : ''}\n`;
      await fs.writeFile(path.join(tools, tool), script, { mode: 0o755 });
    }
    up = makeUp(target, { MODE: '', OVERLAY, PATH: [tools, env.PATH].join(path.delimiter) });
    expect(await up.line(/^make up: cluster, /)).toMatch(/\(MODE=local for local processes\)$/);
    await up.line(/^ctlptl apply -f ctlptl.yaml$/);
    expect(await up.line(/^tilt /)).toBe(`tilt ${tilt}`);
    await up.line(/^make: .*Error 3$/);
  },
);

const passed = /^test +\| ok 8 /;
const tested = /^test +\| # invoice-app (\w+)/;

async function served(): Promise<string> {
  const response = await fetch(`${url}/version`);
  const { source }: { source: string } = JSON.parse(await response.text());
  return source;
}

test(
  'serves, tests each save against the new code, survives a broken save, and leaves no process',
  { timeout: 60_000 },
  async () => {
    const file = path.join(clone, 'services/invoice-app/src/main.ts');
    const good = await fs.readFile(file, 'utf8');

    up = makeUp();
    expect(await up.line(/^make up: /)).toContain('local processes, because MODE=local is set');
    const [, first] = tested.exec(await up.line(tested)) ?? [];
    await up.line(passed);
    expect(await served()).toBe(first);
    expect(await whyTaken('', port('INVOICE_APP_INSPECT_PORT'))).toBeUndefined();

    await fs.writeFile(file, `${good}// saved once\n`);
    const [, second] = tested.exec(await up.line(tested)) ?? [];
    await up.line(passed);
    expect(second).not.toBe(first);
    expect(await served()).toBe(second);

    await fs.writeFile(file, `${good}const = ;\n`);
    await up.line(/^invoice-app +\| SyntaxError/);
    await up.line(/^invoice-app +\| \[reload\] invoice-app did not start .* keeps serving/);
    expect(await served()).toBe(second);
    await fs.writeFile(file, good);
    await up.line(passed);
    expect(await served()).toBe(first);

    const { groups } = await state();
    expect(groups).toHaveLength(services.length + 1);
    expect(await up.end('SIGINT')).toBe('SIGINT');
    await expectNothingLeft(groups);
  },
);

test(
  'reports a second make up here, and a port in use, before anything starts',
  { timeout: 60_000 },
  async () => {
    up = makeUp();
    await up.line(/^up +\| serving /);
    const second = makeUp();
    await second.line(/^up +\| make up is already running here, as process \d+$/);
    await fs.rename(path.join(clone, '.payloop/processes.json'), path.join(clone, '.payloop/moved.json'));
    const third = makeUp();
    await third.line(
      /^up +\| port \d+ is in use by process \d+ \(.*libraries\/chassis\/dev\/serve\.ts invoice-app\): stop it/,
    );
    await fs.rename(path.join(clone, '.payloop/moved.json'), path.join(clone, '.payloop/processes.json'));
    expect(await served()).toMatch(/^\w{64}$/);
    expect(await up.end('SIGTERM')).not.toBe(0);
  },
);

const quiet = { LOG_LEVEL: '' };
const green = /^test +\| passed, 8 checks, \d+\.\d s$/;
const greenAgain = /^test +\| passed, 8 checks, \d+\.\d s; served after \d+ ms$/;
const service = () => path.join(clone, 'services/invoice-app/src/service.ts');

test(
  'by default prints one line for a good save, and the reason for a broken one',
  { timeout: 90_000 },
  async () => {
    const good = await fs.readFile(service(), 'utf8');
    up = makeUp('up', quiet);
    await up.line(green);
    await fetch(url);
    await fetch(`${url}/invoices`);
    await delay(500);
    expect(up.rest()).toEqual([]);
    await fs.writeFile(service(), `${good}// saved\n`);
    await expect.poll(() => up!.rest(), { timeout: 15_000 }).not.toEqual([]);
    await delay(1_000);
    expect(up.rest()).toEqual([expect.stringMatching(greenAgain)]);

    // The service and the test both report a mistake, long before the test's timeout.
    const at = performance.now();
    await fs.writeFile(service(), `${good}const = ;\n`);
    await up.line(
      /^test +\| payment test failed: every replica .*: invoice-app does not start with the code in this/,
    );
    expect(performance.now() - at).toBeLessThan(8_000);
    await fs.writeFile(service(), `${good}// mended\n`);
    await up.line(greenAgain);

    await fs.writeFile(service(), `${good}const = ;\n`);
    await up.line(/^invoice-app +\| SyntaxError/);
    await up.line(/^invoice-app +\| \[reload\] invoice-app did not start/);
    await fs.writeFile(service(), `${good}// mended\n`);
    await up.line(/^invoice-app +\| \[reload\] invoice-app runs the previous code again$/);
    await up.line(greenAgain);

    // The test learns of a mistake in payment-provider from invoice-app.
    const provider = path.join(clone, 'services/payment-provider/src/service.ts');
    const before = await fs.readFile(provider, 'utf8');
    await fs.writeFile(provider, `${before}throw new Error('not today');\n`);
    await up.line(
      /^test +\| payment test failed: .*: payment-provider does not start with the code in this folder/,
    );
    await fs.writeFile(provider, before);
    await up.line(greenAgain);
    await fs.writeFile(service(), good);
    await up.line(greenAgain);
  },
);

test('restarts a process that exits', { timeout: 90_000 }, async () => {
  up = makeUp('up', quiet);
  await up.line(green);
  await delay(5_000);
  for (const name of [...services.map((each) => each.name), 'test']) {
    const { groups } = await state();
    signal(groups[0]!, 'SIGKILL');
    await up.line(new RegExp(`^up +\\| ${name} exited \\(SIGKILL\\) and is restarted$`));
    const now = async () => (await state()).groups;
    await expect.poll(now, { timeout: 15_000 }).not.toContain(groups[0]);
    await expect.poll(now).toHaveLength(services.length + 1);
  }
  await up.line(green);
  const good = await fs.readFile(service(), 'utf8');
  await fs.writeFile(service(), `${good}// saved\n`);
  await up.line(greenAgain);
  await fs.writeFile(service(), good);
  const { groups } = await state();
  await up.end('SIGINT');
  await expectNothingLeft(groups);
});

test('tests a save after the folder was moved away and back', { timeout: 90_000 }, async () => {
  up = makeUp('up', quiet);
  await up.line(green);
  const src = path.dirname(service());
  const away = path.join(temporary, 'away');
  await fs.rename(src, away);
  await delay(2_000);
  await fs.rename(away, src);
  await up.line(greenAgain);
  const good = await fs.readFile(service(), 'utf8');
  for (const times of [1, 2]) {
    await delay(3_000);
    await fs.writeFile(service(), `${good}// saved ${times}\n`);
    expect(await up.line(greenAgain)).toMatch(/passed/);
  }
  await fs.writeFile(service(), good);
  await up.line(greenAgain);
});

test('runs in a clone with any name, except one with a colon', { timeout: 60_000 }, async () => {
  const [usual, odd] = [clone, path.join(temporary, `feature%2Fpay, C# & 100% "don't"`)];
  const colon = path.join(temporary, 'a:b');
  await fs.rename(usual, odd);
  try {
    clone = odd;
    up = makeUp('up', quiet);
    await up.line(green);
    await up.end('SIGINT');
    await fs.rename(odd, colon);
    clone = colon;
    up = makeUp();
    expect(await up.line(/colon/)).toMatch(/has a colon, which PATH cannot hold: move it/);
  } finally {
    await fs.rename(clone, usual);
    clone = usual;
  }
});

/** Combines settings that were seen in the environments of users. */
async function hostileEnvironment(): Promise<NodeJS.ProcessEnv> {
  const home = path.join(temporary, 'home');
  await fs.mkdir(path.join(home, 'elsewhere/local'), { recursive: true });
  await fs.mkdir(path.join(home, 'elsewhere/services'), { recursive: true });
  const dead = 'http://127.0.0.1:9';
  await fs.writeFile(path.join(home, '.curlrc'), `include\nproxy = ${dead}\nfail\n`);
  await fs.writeFile(path.join(home, 'nodemon.json'), '{"ignore":["*.ts"],"delay":60000,"exec":"false"}');
  await fs.writeFile(path.join(home, 'required.cjs'), 'process.exit(7);');
  return {
    HOME: home,
    CURL_HOME: home,
    CDPATH: path.join(home, 'elsewhere'),
    PGSSLMODE: 'require',
    PGOPTIONS: '-c search_path=app -c default_transaction_read_only=on',
    PGHOST: '192.0.2.1',
    PGPORT: '1',
    PGUSER: 'somebody',
    PGDATABASE: 'something',
    PGPASSWORD: 'wrong',
    PGSERVICE: 'none',
    DATABASE_URL: 'postgres://192.0.2.1/',
    DATABASE_URL_FILE: '/nowhere',
    PAYMENT_PROVIDER_ENDPOINT: 'http://192.0.2.1/',
    PORT: '1',
    METRICS_PORT: 'x',
    ENVIRONMENT: 'prod',
    ALLOW_RESET: 'false',
    http_proxy: dead,
    HTTP_PROXY: dead,
    https_proxy: dead,
    all_proxy: dead,
    NODE_USE_ENV_PROXY: '1',
    NODE_OPTIONS: `--require ${path.join(home, 'required.cjs')}`,
    ...quiet,
  };
}

test(
  'make up and test.sh ignore settings that the user has for other programs',
  { timeout: 90_000 },
  async () => {
    const hostile = await hostileEnvironment();
    up = makeUp('up', hostile);
    await up.line(/^up +\| serving /);
    await up.line(green);
    const good = await fs.readFile(service(), 'utf8');
    await fs.writeFile(service(), `${good}// saved\n`);
    await up.line(greenAgain);
    await fs.writeFile(service(), good);
    await up.line(greenAgain);
    for (const address of [url, `${url}/`, `http://localhost:${env.INVOICE_APP_PORT}//`]) {
      const script = await run(path.join(clone, 'test.sh'), [address, '1'], {
        env: { ...env, ...hostile },
        cwd: '/',
      });
      expect(script.stdout).toMatch(/^ok 8 /m);
    }
    expect(await fs.readdir(path.join(temporary, 'home/elsewhere/local'))).toEqual([]);
  },
);

test('payment tests of the same address take turns', { timeout: 60_000 }, async () => {
  up = makeUp('up', quiet);
  await up.line(green);
  const tests = await Promise.all(
    ['127.0.0.1', 'localhost', 'localhost'].map((host) =>
      run(path.join(clone, 'test.sh'), [`http://${host}:${env.INVOICE_APP_PORT}`, '1'], { env }),
    ),
  );
  for (const { stdout } of tests) expect(stdout).toMatch(/^ok 8 /m);
  expect(
    tests.filter(({ stdout }) => /^# waiting for the payment test of process \d+$/m.test(stdout)),
  ).toHaveLength(2);
  // The lock of a killed test delays no other test.
  const lock = path.join(clone, `.payloop/payment-test-http___localhost_${env.INVOICE_APP_PORT}`);
  await fs.symlink('999999999', lock);
  await run(path.join(clone, 'test.sh'), [url, '1'], { env });
  await expect(fs.readlink(lock)).rejects.toThrow('ENOENT');
});

test('reports changes that take effect only at the next start', { timeout: 60_000 }, async () => {
  up = makeUp('up', quiet);
  await up.line(green);
  for (const name of [
    'package.json',
    'libraries/chassis/dev/gateway.ts',
    'libraries/chassis/src/source.ts',
  ]) {
    const file = path.join(clone, name);
    const before = await fs.readFile(file, 'utf8');
    await fs.writeFile(file, `${before}\n`);
    const line = await up.line(/ has changed: /);
    expect(line).toMatch(
      new RegExp(`^up +\\| ${name} has changed: stop make up \\(Ctrl-C\\) and start it again to `),
    );
    await fs.writeFile(file, before);
  }
});

/** Adds a third service, with a folder and a line in the list. It answers with the variables that its folder sets. */
async function addRefunds(): Promise<string> {
  const folder = path.join(clone, 'services/refunds');
  const files = {
    'package.json': '{ "name": "@payloop/refunds", "type": "module", "dependencies": {} }',
    'src/main.ts': `import { run } from '@payloop/chassis/run.ts';\nvoid run('refunds', () => import('./service.ts'));`,
    'src/service.ts': `
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Self } from '@payloop/chassis/self.ts';

export async function start({ env, source, instance, failed }: Self) {
  const { PAYMENT_PROVIDER_URL: provider, TOKEN_FILE: token, DATABASE_URL: database } = env;
  const self = () => ({ service: 'refunds', source, instance, failed: failed?.(), provider, token, database });
  const server = createServer((_, response) => response.end(JSON.stringify(self())));
  await new Promise<void>((done) => server.listen(Number(env.PORT), '127.0.0.1', done));
  const { port } = server.address() as AddressInfo;
  return { port, metricsPort: 0, ready: Promise.resolve(true), stop: async () => void server.close() };
}
`,
    'deploy/service.yaml': `data:\n  name: refunds\n  port: '${port('REFUNDS_PORT')}'\n`,
    'deploy/kustomization.yaml': 'patches: [{ path: deployment.yaml, target: { kind: Deployment } }]',
    'deploy/deployment.yaml': `
kind: Deployment
spec:
  template:
    spec:
      containers:
        - name: app
          env:
            - { name: PAYMENT_PROVIDER_URL, value: 'http://payment-provider.payment-provider:8082/payments/pay' }
            - { name: TOKEN_FILE, value: /run/secrets/identity/token }
`,
  };
  for (const [name, content] of Object.entries(files)) {
    await fs.mkdir(path.dirname(path.join(folder, name)), { recursive: true });
    await fs.writeFile(path.join(folder, name), content);
  }
  await fs.appendFile(path.join(clone, base), '  - ../../services/refunds/deploy\n');
  return folder;
}

test('runs, reloads and tests a service that a folder and one line add', { timeout: 90_000 }, async () => {
  const list = await fs.readFile(path.join(clone, base), 'utf8');
  const folder = await addRefunds();
  try {
    // It uses the port in its folder, but another one for its inspector.
    up = makeUp('debug', { REFUNDS_PORT: '' });
    await up.line(new RegExp(`^up +\\| refunds is at http://127\\.0\\.0\\.1:${port('REFUNDS_PORT')}$`));
    await up.line(
      new RegExp(`^up +\\| the inspector of refunds is at 127\\.0\\.0\\.1:${port('REFUNDS_INSPECT_PORT')}$`),
    );
    const [, first] = /# refunds (\w{64})$/.exec(await up.line(/^test +\| # refunds /)) ?? [];
    await up.line(passed);
    const version = async () => {
      const response = await fetch(`http://127.0.0.1:${port('REFUNDS_PORT')}/version`);
      return JSON.parse(await response.text());
    };
    const said = await version();
    expect(said).toMatchObject({
      source: first,
      provider: `http://127.0.0.1:${port('PAYMENT_PROVIDER_PORT')}/payments/pay`,
      database: expect.stringMatching(/\/refunds$/),
    });
    expect(said.token).toBeUndefined();

    const file = path.join(folder, 'src/service.ts');
    const good = await fs.readFile(file, 'utf8');
    // Takes effect at the next start, and not before, for the service or the test.
    await fs.writeFile(path.join(folder, 'deploy/service.yaml'), `data:\n  name: refunds\n  port: '1'\n`);
    await up.line(/ services\/refunds\/deploy\/service\.yaml has changed: /);
    await fs.writeFile(file, `${good}// saved\n`);
    const [, second] = /# refunds (\w{64})$/.exec(await up.line(/^test +\| # refunds /)) ?? [];
    await up.line(passed);
    expect(second).not.toBe(first);
    expect(await version()).toMatchObject({ source: second });
    await fs.writeFile(file, `${good}const = ;\n`);
    await up.line(/^test +\| payment test failed: .*: refunds does not start with the code in this folder/);
    const { groups } = await state();
    await up.end('SIGINT');
    await expectNothingLeft(groups);
  } finally {
    await fs.writeFile(path.join(clone, base), list);
    await fs.rm(folder, { recursive: true });
  }
});

test('reports a list of services that cannot be read in one line', async () => {
  const list = await fs.readFile(path.join(clone, base), 'utf8');
  await fs.appendFile(path.join(clone, base), '  - ../../services/refunds\n');
  up = makeUp();
  await up.line(/^make up: kustomize\/base\/kustomization.yaml: \.\.\/\.\.\/services\/refunds is not \S+$/);
  await up.line(/^make: .*Error 1$/);
  expect(up.rest()).toEqual([]);
  await fs.writeFile(path.join(clone, base), list);
});

test('reports all ports in use at once', async () => {
  const names = [...services.map((each) => `${variablePrefix(each)}_PORT`), 'POSTGRES_PORT'];
  const servers = names.map((name) => createServer().listen(port(name), '127.0.0.1'));
  await Promise.all(servers.map((server) => once(server, 'listening')));
  up = makeUp();
  for (const name of names) {
    const line = await up.line(/^up +\| port /);
    expect(line).toMatch(new RegExp(`port ${port(name)} is in use .* set ${name} to`));
  }
  await up.line(/^make: .*Error 1$/);
  for (const server of servers) server.close();
});

/** Runs a shell script in its own mount namespace. */
const inMountNamespace = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c'];
/** Makes the folder `$0` read-only in that namespace, and enters it. */
const enterReadOnly = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0"';

test.runIf(canMount())('reports a read-only checkout in one line', async () => {
  const [file, ...args] = inMountNamespace;
  const child = spawn(file!, [...args, `${enterReadOnly} && make up 2>&1`, clone], { env });
  const output = await readAll(child.stdout);
  expect(output).toMatch(
    /^up +\| .*\.payloop cannot be written to \(EROFS\), and make up keeps its data there: /m,
  );
  expect(output).not.toMatch(/^ +at |Error: /m);
});

function canMount(): boolean {
  const [file, ...args] = inMountNamespace;
  return spawnSync(file!, [...args, enterReadOnly, os.tmpdir()]).status === 0;
}

test('without Docker, OVERLAY=prod and make down print one line each', { timeout: 60_000 }, async () => {
  // Contains all commands except docker.
  const folder = path.join(temporary, 'no-docker');
  await fs.mkdir(folder);
  for (const source of (env.PATH ?? '').split(path.delimiter)) {
    for (const name of await fs.readdir(source).catch(() => [])) {
      if (name !== 'docker')
        await fs.symlink(path.join(source, name), path.join(folder, name)).catch(() => undefined);
    }
  }
  const without = { MODE: '', PATH: folder };
  up = makeUp('up', { ...without, OVERLAY: 'prod' });
  await up.line(/^make up: the overlay prod needs a cluster, but there is no docker command$/);
  await up.line(/^make: .*Error 1$/);
  up = makeUp('down', without);
  expect(await up.line(/^make/)).toMatch(
    /^make down: there is no docker command here, so there is no cluster to remove$/,
  );
});

test('reports a damaged list of processes in one line', async () => {
  const list = path.join(clone, '.payloop/processes.json');
  await fs.mkdir(path.dirname(list), { recursive: true });
  await fs.writeFile(list, '{"owner":');
  up = makeUp();
  try {
    await up.line(/^up +\| .*processes\.json is damaged: .* delete it$/);
    expect(await up.line(/./)).toMatch(/^make: .*Error 1$/);
  } finally {
    await fs.rm(list);
  }
});

test('stops the processes that a killed make up left behind', { timeout: 60_000 }, async () => {
  const killed = makeUp();
  await killed.line(passed);
  const left = await state();
  signal(left.owner, 'SIGKILL');
  await delay(100);
  expect(left.groups.every((pid) => exists(-pid))).toBe(true);

  up = makeUp();
  await up.line(/^up +\| stopping a process that an earlier run left behind/);
  await up.line(passed);
  const { groups } = await state();
  await up.end('SIGTERM');
  await expectNothingLeft([...left.groups, ...groups]);
});

test('make debug opens the inspectors of both services, on loopback only', { timeout: 60_000 }, async () => {
  up = makeUp('debug');
  await up.line(/^up +\| the inspector of invoice-app is at 127\.0\.0\.1:\d+$/);
  await up.line(passed);
  await fetch(`${url}/reset`, { method: 'POST' });
  const app = await Debugger.attach(port('INVOICE_APP_INSPECT_PORT'));
  const provider = await Debugger.attach(port('PAYMENT_PROVIDER_INSPECT_PORT'));
  const inApp = await breakAt(app, 'services/invoice-app/src/service.ts', 'const tally = await payAll(');
  const inProvider = await breakAt(provider, 'services/payment-provider/src/service.ts', 'const fault = ');

  const stops = [app.paused(), provider.paused()] as const;
  const answer = fetch(`${url}/invoices/pay`, { method: 'POST' });
  expect(await stops[0]).toMatchObject(inApp);
  await app.resume();
  const stop = await stops[1];
  expect(stop).toMatchObject(inProvider);
  expect(await stop.evaluate('body.length')).toBe(3);
  await provider.resume();
  expect((await answer).status).toBe(200);
  await Promise.all([app.close(), provider.close()]);

  const outside = Object.values(os.networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .filter(({ internal, family }) => !internal && family === 'IPv4')
    .map(({ address }) => address);
  // A machine without a network has no such address. A port that is open on all addresses is also open on this one.
  if (process.platform === 'linux') outside.push('127.0.0.2');
  for (const host of outside) {
    const socket = connect({ host, port: port('INVOICE_APP_INSPECT_PORT') });
    await expect(once(socket, 'connect')).rejects.toThrow('ECONNREFUSED');
  }
  const { groups } = await state();
  await up.end('SIGINT');
  await expectNothingLeft(groups);
});

/** Sets a breakpoint on the line that contains a text. @returns the place at which the program will stop */
async function breakAt(attached: Debugger, file: string, text: string) {
  const lines = (await fs.readFile(path.join(clone, file), 'utf8')).split('\n');
  const line = lines.findIndex((each) => each.includes(text)) + 1;
  expect(line, `of '${text}'`).toBeGreaterThan(0);
  const { href } = pathToFileURL(path.join(clone, file));
  expect(await attached.breakAt(href, line)).toEqual([line]);
  return { url: href, line };
}

test('reports the port of an inspector in use like any other port', async () => {
  const taken = createServer().listen(port('PAYMENT_PROVIDER_INSPECT_PORT'), '127.0.0.1');
  await once(taken, 'listening');
  up = makeUp('debug');
  expect(await up.line(/^up +\| port \d+ is in use/)).toMatch(
    /set PAYMENT_PROVIDER_INSPECT_PORT to a free port$/,
  );
  taken.close();
});

/** Sends a number of payments to the provider. @returns the status of each answer, 0 for none */
async function statusesOfPayments(count: number): Promise<number[]> {
  const body = JSON.stringify({ id: 'I1', value: 1, currency: 'EUR' });
  const ask = () =>
    fetch(`http://127.0.0.1:${env.PAYMENT_PROVIDER_PORT}/payments/pay`, {
      method: 'POST',
      body,
      signal: AbortSignal.timeout(5_000),
    }).then(
      ({ status }) => status,
      () => 0,
    );
  return Promise.all(Array.from({ length: count }, ask));
}

test(
  'OVERLAY=flaky sets the variables of that overlay, has separate data, and passes the same test',
  { timeout: 90_000 },
  async () => {
    const overlay = { OVERLAY: 'flaky' };
    up = makeUp('debug', overlay);
    await up.line(/^make up: local/);
    const said = await up.line(/^up +\| flaky: /);
    for (const variables of Object.values(readOverlay('flaky'))) {
      for (const [name, value] of Object.entries(variables)) expect(said).toContain(`${name}=${value}`);
    }
    await up.line(/^up +\| serving /);
    const { SEED_INVOICES } = readOverlay('flaky')['invoice-app']!;
    expect(await (await fetch(`${url}/invoices`)).json()).toHaveLength(Number(SEED_INVOICES));
    await up.line(passed);
    expect(await statusesOfPayments(20)).toContain(402);
    await up.end('SIGINT');

    up = makeUp();
    await up.line(/^up +\| serving /);
    expect(await (await fetch(`${url}/invoices`)).json()).toHaveLength(3);
    expect(await statusesOfPayments(20)).toEqual(Array.from({ length: 20 }, () => 200));
    await up.end('SIGINT');
  },
);

test('rejects an overlay that does not work with local processes in one line', async () => {
  up = makeUp('up', { OVERLAY: 'prod' });
  expect(await up.line(/^up +\| /)).toMatch(
    /\| OVERLAY=prod does not work with local processes: use dev or flaky, or set MODE=/,
  );
  await up.line(/^make: .*Error 1$/);
});
