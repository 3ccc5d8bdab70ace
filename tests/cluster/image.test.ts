import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { freePort } from '../../local/ports.ts';
import { statusOf } from '../support/start-service.ts';
import { overlay, readPodSpec, services } from './cluster.ts';

/** Properties of the production image itself, independent of the manifests. */

const run = promisify(execFile);
async function docker(...args: string[]): Promise<string> {
  return (await run('docker', args, { maxBuffer: 64 * 1024 ** 2 })).stdout.trim();
}

/** Returns the name of the image that the Deployment runs. */
async function imageOf(service: string): Promise<string> {
  return (await readPodSpec(service)).containers[0].image;
}

/** Returns the names of all files in an image. */
async function filesOf(image: string): Promise<string[]> {
  const container = await docker('create', image);
  try {
    const list = `docker export ${container} | tar --list`;
    return (await run('bash', ['-o', 'pipefail', '-c', list], { maxBuffer: 64 * 1024 ** 2 })).stdout.split(
      '\n',
    );
  } finally {
    await docker('rm', container);
  }
}

/** Tools that an intruder looks for first: shells, package managers, ways to download more. */
const tools = (
  'sh bash dash ash zsh busybox toybox apt apt-get dpkg apk yum rpm npm npx yarn pnpm corepack pip ' +
  'curl wget nc ssh perl python3'
).split(' ');

describe.runIf(overlay === 'prod').each(services)('the image of %s', (service) => {
  test(
    'has no shell, no package manager, no download tool, and no packages',
    { timeout: 60_000 },
    async () => {
      const files = await filesOf(await imageOf(service));
      // These files show that the list is that of the image.
      expect(files).toEqual(expect.arrayContaining(['app/main.js', 'nodejs/bin/node']));
      const names = new Set(files.map((file) => file.split('/').at(-1)));
      expect(tools.filter((name) => names.has(name))).toEqual([]);
      expect(files.filter((file) => file.includes('node_modules'))).toEqual([]);
    },
  );

  test(
    'runs as user 65532 on a read-only root and exits within 2 s of SIGTERM',
    { timeout: 60_000 },
    async () => {
      const image = await imageOf(service);
      expect(await docker('inspect', '--format={{.Config.User}}', image)).toBe('65532:65532');
      const port = await freePort();
      // No database is needed: the service is live without one, though not ready.
      const settings = ['DATABASE_URL=postgres://127.0.0.1:1/', `PORT=${port}`, 'METRICS_PORT=0', 'AUTH=off'];
      const container = await docker(
        'run',
        '--detach',
        '--read-only',
        `--publish=127.0.0.1:${port}:${port}`,
        ...settings.map((setting) => `--env=${setting}`),
        image,
      );
      try {
        await expect.poll(() => statusOf(`http://127.0.0.1:${port}/livez`), { timeout: 20_000 }).toBe(200);
        const before = performance.now();
        await docker('kill', '--signal=TERM', container);
        expect(await docker('wait', container)).toBe('0');
        expect(performance.now() - before).toBeLessThan(2_000);
      } finally {
        await docker('rm', '--force', container);
      }
    },
  );
});
