import { execFile } from 'node:child_process';
import { resolve } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFailed, test } from 'vitest';
import { hashSource } from '../../../../libraries/chassis/src/source.ts';
import { isReady, kubectl, nodeContainer, overlay, pods, paying, until, url } from '../../cluster.ts';
import { append, folderSources, runningSources, waitUntilServed, waitUntilTested } from '../../saves.ts';
import { makeVariables } from '../../../support/make.ts';
import { linkPackages } from '../../../support/tree.ts';
import { Tilt } from '../../tilt.ts';
import { cutOff, Offline, whyNotOffline } from './offline.ts';

const root = resolve(import.meta.dirname, '../../../..');
const nowhere = '192.0.2.1';
/** The inherited variables to unset. With the variables of our make, the child make would join it. */
const inherited = [...makeVariables, 'OVERLAY', 'TESTS'];
const make = ['env', ...inherited.flatMap((name) => ['-u', name]), 'make'];
const obstacle = await whyNotOffline();

describe.skipIf(obstacle)(`without a network${obstacle ? ` (skipped: ${obstacle})` : ''}`, () => {
  let offline: Offline;
  let up: Tilt | undefined;
  beforeAll(async () => {
    offline = await Offline.start();
  });
  afterAll(() => offline?.end());
  beforeEach(() =>
    onTestFailed(() => void (up && process.stdout.write(`End of the output of make up:\n${up.tail()}\n`))),
  );

  describe('in a cluster', () => {
    let restore: (() => Promise<void>) | undefined;
    beforeAll(async () => {
      const server = await kubectl(
        'config',
        'view',
        '--minify',
        '--output=jsonpath={.clusters[0].cluster.server}',
      );
      for (const at of [url, server]) await offline.admit(Number(new URL(at).port));
      restore = await cutOff();
    });
    afterAll(async () => {
      await up?.down();
      up = undefined;
      await offline.dismiss();
      await restore?.();
    });

    test('neither the network namespace nor the node has a way out', async () => {
      await expect(offline.run('ip', 'route', 'get', nowhere)).rejects.toThrow(/unreachable/);
      const connect = ['timeout', '20', 'bash', '-c', `echo > /dev/tcp/${nowhere}/80`];
      const inNode = promisify(execFile)('docker', ['exec', nodeContainer, ...connect]);
      await expect(inNode).rejects.toThrow(/No route to host/);
    });

    test('make up reaches a passing payment test', { timeout: 300_000 }, async () => {
      const command = offline.command(...make, 'up', 'MODE=cluster', `OVERLAY=${overlay}`);
      up = await Tilt.up({ command, prepare: linkPackages, seconds: 250 });
      expect(await runningSources()).toEqual(folderSources(up));
    });

    test('a save is served', { timeout: 120_000 }, async () => {
      const from = up!.log.length;
      await append(up!, 'libraries/chassis/src/run.ts', '// offline\n');
      await waitUntilServed(up!, 60);
      await waitUntilTested(up!, from);
      expect(await runningSources()).toEqual(folderSources(up!));
    });

    test('images are rebuilt with cached packages', { timeout: 200_000 }, async () => {
      const from = up!.log.length;
      const before = (await Promise.all(paying.map(pods))).flat();
      await append(up!, 'libraries/chassis/dev/child.ts', '// offline\n');
      await until('both services have new pods', 120, async () => {
        const now = (await Promise.all(paying.map(pods))).flat();
        const old = now.some(({ metadata }) => before.some((pod) => pod.metadata.uid === metadata.uid));
        return now.length === before.length && !old && now.every(isReady);
      });
      await waitUntilServed(up!, 60);
      const log = up!.log.slice(from);
      const steps = [...log.matchAll(/\[packages \d\/\d\] RUN .*/g)].map(([line]) => line);
      expect(steps.length).toBeGreaterThan(0);
      for (const line of steps) expect(line).toMatch(/\[cached\]$/);
    });
  });

  test(
    'make up MODE=local reaches a passing payment test and serves a save',
    { timeout: 200_000 },
    async () => {
      const command = offline.command(...make, 'up', 'MODE=local');
      up = await Tilt.up({ command, prepare: linkPackages, seconds: 100, green: /passed, 8 checks/ });
      try {
        await append(up, 'services/invoice-app/src/main.ts', '// offline\n');
        const source = hashSource(up.folder, 'invoice-app');
        const version = () => offline.run('curl', '--silent', 'http://127.0.0.1:8081/version');
        await until('the save is served', 60, async () => (await version()).includes(source));
        expect(await version()).toContain(source);
      } finally {
        await up.down();
        up = undefined;
      }
    },
  );

  test('make test passes', { timeout: 900_000 }, async () => {
    const [program, ...args] = offline.command(...make, 'test');
    const { stdout } = await promisify(execFile)(program, args, { cwd: root, maxBuffer: 64 * 1024 ** 2 });
    expect(stdout).toMatch(/Tests .*passed/);
  });
});
