// Follows a new user, who has a clone of the last commit, a Node with its bundled npm, and no Docker.
import { execFile } from 'node:child_process';
import * as fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { freePort } from '../../local/ports.ts';
import { processesIn, Running } from './running.ts';
import { installToolchain, npmOf, type NodeVersion } from './toolchains.ts';

const run = promisify(execFile);
const repository = path.resolve(import.meta.dirname, '../..');
const isRoot = process.getuid?.() === 0;
const npmCiMs = 120_000;
const servingMs = 60_000;
const testMs = 30_000;
const checksMs = 120_000;

/** The toolchains that these tests install are those of Linux x64. */
const isLinuxX64 = process.platform === 'linux' && process.arch === 'x64';

let folder: string;
const bins: Partial<Record<NodeVersion, string>> = {};

beforeAll(async () => {
  if (!isLinuxX64) return;
  folder = await fs.realpath(await fs.mkdtemp(path.join(os.tmpdir(), 'payloop-')));
  await fs.chmod(folder, 0o755);
  for (const version of Object.keys(npmOf) as NodeVersion[]) {
    bins[version] = await installToolchain(version, path.join(folder, 'nodes', version));
  }
});
afterAll(async () => {
  if (isLinuxX64) await fs.rm(folder, { recursive: true, force: true });
});

interface Machine {
  node: NodeVersion;
  /** The path of the clone in the home folder of the user. */
  clone: string;
  /** Runs as an ordinary user even if the tests run as root. */
  ordinary?: boolean;
  umask?: string;
}

const machines: Machine[] = [
  { node: '20.19.5', clone: 'with a blank/C#' },
  { node: '22.23.2', clone: 'home/runner/work/payloop/payloop-of-sixty-characters', ordinary: true },
  { node: '24.11.0', clone: '100%/payloop', umask: '077' },
  { node: '24.0.0', clone: 'Users/somebody/code/payloop', ordinary: true, umask: '027' },
];

describe.runIf(isLinuxX64)('on Linux x64', () => {
  test.concurrent.for(machines)(
    'make up and make check pass with Node $node in $clone, ordinary user: $ordinary, umask $umask',
    async ({ node, clone: name, ordinary = false, umask = '022' }) => {
      const home = await fs.mkdtemp(path.join(folder, 'user-'));
      const clone = path.join(home, name);
      await run('git', ['clone', '--quiet', repository, clone]);
      const user = ordinary && isRoot ? await nobody() : undefined;
      if (user) await run('chown', ['-R', `${user.uid}:${user.gid}`, home]);
      const env = {
        ...certificates(),
        PATH: `${bins[node]}:/usr/bin:/bin`,
        HOME: home,
        TMPDIR: await temporaryFolder(home, user),
        DOCKER_HOST: 'unix:///nowhere/docker.sock',
        INVOICE_APP_PORT: String(await freePort()),
        PAYMENT_PROVIDER_PORT: String(await freePort()),
        POSTGRES_PORT: String(await freePort()),
      };
      const make = (target: string) =>
        new Running('bash', ['-c', 'umask "$0" && exec make "$1" 2>&1', umask, target], {
          cwd: clone,
          env,
          ...user,
        });
      await startsAndStops(make('up'), `http://localhost:${env.INVOICE_APP_PORT}`, (up) =>
        up.signal('SIGINT'),
      );
      expect(await processesIn(home)).toEqual([]);
      await passesChecks(make('check'));
    },
  );
});

/** The oldest and the newest supported npm, each with a Node that can run it. */
const npms = [
  { npm: '9.6.4', node: '20.19.5' },
  { npm: '12.2.1', node: '22.23.2' },
] as const;

test.runIf(isLinuxX64).concurrent.for(npms)(
  'make install with npm $npm installs Node 24',
  async ({ npm, node }) => {
    const home = await fs.mkdtemp(path.join(folder, 'npm-'));
    const clone = path.join(home, 'clone');
    await run('git', ['clone', '--quiet', repository, clone]);
    const tools = await installToolchain(node, path.join(home, 'node'), npm);
    const env = { ...certificates(), PATH: `${tools}:/usr/bin:/bin`, HOME: home };
    await run('make', ['install'], { cwd: clone, env });
    const { stdout } = await run(path.join(clone, '.payloop/bin/node'), ['--version']);
    expect(stdout).toMatch(/^v24\./);
  },
);

/** Checks that make up serves within a minute of npm ci, passes its payment test, and exits when stopped. */
async function startsAndStops(up: Running, url: string, stop: (up: Running) => void): Promise<void> {
  try {
    await up.prints(/npm ci took/, npmCiMs);
    await up.prints(new RegExp(`serving ${url}`), servingMs);
    await up.prints(/^test +\| (ok 8 - |passed, 8 checks)/m, testMs);
    expect(up.output).not.toMatch(/^test +\| not ok/m);
  } finally {
    stop(up);
    await up.ended();
  }
  expect(up.output).toMatch(/^up +\| stopping/m);
}

async function passesChecks(check: Running): Promise<void> {
  await check.prints(/prettier --check/, checksMs);
  const code = await check.ended();
  if (code !== 0) throw new Error(`make check exited with code ${code}:\n${check.output}`);
}

async function nobody(): Promise<{ uid: number; gid: number }> {
  const ids = await Promise.all(['-u', '-g'].map((option) => run('id', [option, 'nobody'])));
  const [uid, gid] = ids.map(({ stdout }) => Number(stdout));
  return { uid: uid!, gid: gid! };
}

/** Creates the folder for TMPDIR. Root's Postgres runs as another user, who must be able to traverse `home`. */
async function temporaryFolder(
  home: string,
  user: { uid: number; gid: number } | undefined,
): Promise<string> {
  const temporary = path.join(home, 'tmp');
  await fs.mkdir(temporary);
  if (user) await fs.chown(temporary, user.uid, user.gid);
  else await fs.chmod(home, 0o711);
  return temporary;
}

/** Passes on the machine's own certificate authority, if it has one, because npm needs it. */
function certificates(): NodeJS.ProcessEnv {
  const { NODE_EXTRA_CA_CERTS: file } = process.env;
  return file === undefined ? {} : { NODE_EXTRA_CA_CERTS: file };
}

/** A minimal Linux with only the tools that the README names. */
const minimal = `FROM debian:bookworm-slim
RUN apt-get update && apt-get install --yes --no-install-recommends make curl jq && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home user
USER user
WORKDIR /home/user/payloop`;

const docker = await run('docker', ['info']).then(
  () => true,
  () => false,
);

test.runIf(isLinuxX64 && docker)(
  'make check and make up pass in debian:bookworm-slim with only README tools',
  async () => {
    const image = 'payloop-test-install';
    await run('bash', ['-c', 'docker build --quiet --tag="$0" - <<<"$1"', image, minimal]);
    const home = await fs.mkdtemp(path.join(folder, 'container-'));
    await fs.chmod(home, 0o755);
    await run('git', ['clone', '--quiet', repository, path.join(home, 'clone')]);
    const container = `payloop-test-install-${process.pid}`;
    const { NODE_EXTRA_CA_CERTS: authority } = certificates();
    const options = [
      `--name=${container}`,
      '--rm',
      '--init',
      `--volume=${home}/clone:/clone:ro`,
      `--volume=${path.dirname(bins['22.23.2']!)}:/node:ro`,
      '--env=PATH=/node/bin:/usr/bin:/bin',
      ...(authority === undefined ? [] : [`--volume=${authority}:/authority.pem:ro`]),
      ...(authority === undefined ? [] : ['--env=NODE_EXTRA_CA_CERTS=/authority.pem']),
    ];
    const script = 'cp -r /clone/. . && make check 2>&1 && exec make up 2>&1';
    const up = new Running('docker', ['run', ...options, image, 'bash', '-c', script]);
    await up.prints(/prettier --check/, npmCiMs);
    await startsAndStops(up, 'http://localhost:8081', () => {
      void run('docker', ['stop', container]).catch(() => undefined);
    });
    const { stdout: left } = await run('docker', ['ps', '--all', '--quiet', `--filter=name=${container}`]);
    expect(left).toBe('');
  },
);
