import { execFile } from 'node:child_process';
import { appendFile, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readServices, type Service } from '../../../../scripts/services.ts';
import { startOddRegistry, type Oddity, type OddRegistry } from './odd-registry.ts';

/** Releases to registries that do not report clearly whether they have a release. Needs Docker, but no cluster. */

const run = promisify(execFile);
const root = resolve(import.meta.dirname, '../../../..');
const services = readServices();
const minutes = 60_000;

let folder: string;
let registry: OddRegistry;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'payloop-registries-'));
  await run('git', ['clone', '--quiet', root, folder]);
  await symlink(join(root, 'node_modules'), join(folder, 'node_modules'));
  await appendFile(join(folder, '.git/info/exclude'), 'node_modules\ndocker\n');
  registry = await startOddRegistry();
}, 2 * minutes);
afterAll(async () => {
  await registry.close();
  // Removes names instead of images, because an image can have other names that are not ours.
  const filters = [registry.host, registry.plainHost].map((host) => `--filter=reference=${host}/*/*`);
  const { stdout } = await run('docker', ['images', '--format={{.Repository}}:{{.Tag}}', ...filters]);
  const images = stdout.split('\n').filter(Boolean);
  if (images.length > 0) await run('docker', ['rmi', ...images]);
  await rm(folder, { recursive: true });
}, minutes);

/** Releases the last commit to a folder of the registry. @returns the output and the exit code */
async function release(name: string, variables: NodeJS.ProcessEnv = {}) {
  const env = { ...process.env, ...variables, REGISTRY: `${registry.host}/${name}` };
  const script = join(folder, 'scripts/release.sh');
  const options = { env, maxBuffer: 64 * 1024 ** 2 };
  try {
    const { stdout, stderr } = await run(script, [], options);
    return { code: 0, manifests: stdout, log: stderr };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, manifests: stdout, log: stderr };
  }
}

/** Returns the digest that the registry has for a release; undefined if it has none. */
async function digestOf(name: string, service: Service): Promise<string | undefined> {
  const repository = `http://${registry.plainHost}/v2/${name}/${service.name}`;
  const response = await fetch(`${repository}/manifests/${service.release}`, {
    headers: {
      accept:
        'application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json',
    },
  });
  return response.status === 200 ? (response.headers.get('docker-content-digest') ?? undefined) : undefined;
}

const digestsOf = (name: string) => Promise.all(services.map((service) => digestOf(name, service)));

/** Pushes another image as each release, as if somebody else had pushed it long ago. */
async function pushEarlier(name: string): Promise<(string | undefined)[]> {
  const dockerfile = join(folder, 'docker');
  await writeFile(dockerfile, 'FROM scratch\nCOPY runbook.md /\n');
  for (const service of services) {
    const image = `${registry.plainHost}/${name}/${service.name}:${service.release}`;
    await run('docker', ['build', '--quiet', `--file=${dockerfile}`, `--tag=${image}`, join(folder, 'docs')]);
    await run('docker', ['push', '--quiet', image]);
  }
  const digests = await digestsOf(name);
  expect(digests).not.toContain(undefined);
  return digests;
}

const isRead = ({ method, kind }: Parameters<Oddity>[0]) =>
  kind === 'manifests' && (method === 'GET' || method === 'HEAD');
const isRelease = ({ reference }: Parameters<Oddity>[0]) =>
  services.some((service) => service.release === reference);

describe('a first release succeeds if a read of a missing repository results in', () => {
  const answers: [string, Oddity, boolean][] = [
    ['404', () => undefined, false],
    ['404 after a token', () => undefined, true],
    ['403', (asked) => (isRead(asked) && !asked.isKnown ? 403 : undefined), false],
    ['401', (asked) => (isRead(asked) && !asked.isKnown ? 401 : undefined), true],
    [
      '403 for a read-only token',
      ({ kind, scope, isKnown }) =>
        kind === 'token' && !isKnown && !scope.includes('push') ? 403 : undefined,
      true,
    ],
  ];
  test.each(answers)('%s', { timeout: 8 * minutes }, async (label, oddity, wantsTokens) => {
    const name = `first-${label.replaceAll(' ', '-')}`;
    registry.behave(oddity, wantsTokens);
    const made = await release(name);
    expect(made).toMatchObject({ code: 0 });
    const digests = await digestsOf(name);
    for (const [n, service] of services.entries()) {
      const image = `${registry.host}/${name}/${service.name}:${service.release}`;
      expect(made.manifests).toContain(`image: ${image}@${digests[n]}\n`);
    }

    const again = await release(name);
    expect(again).toMatchObject({ code: 0, manifests: made.manifests });
    expect(again.log).not.toContain('building');
  });
});

describe('an existing release stays unchanged if', () => {
  test.each<[string, Oddity, RegExp]>([
    [
      'reading is denied but writing is allowed',
      (asked) => (isRead(asked) ? 403 : undefined),
      /cannot read it, so/,
    ],
    [
      'reading returns 401 but writing is allowed',
      (asked) => (isRead(asked) ? 401 : undefined),
      /cannot read it, so/,
    ],
    ['reading returns "not found"', (asked) => (isRead(asked) ? 404 : undefined), /cannot read it, so/],
    [
      'only reading the release is denied',
      (asked) => (isRead(asked) && isRelease(asked) ? 403 : undefined),
      /does not tell whether it has .*\/[a-z0-9-]+:[0-9.]+$/m,
    ],
    [
      'reading and writing are denied',
      ({ kind, method }) => (kind === 'manifests' || method === 'POST' ? 403 : undefined),
      /could not be pushed, see above: log in/,
    ],
  ])('%s', { timeout: 4 * minutes }, async (label, oddity, why) => {
    const name = `kept-${label.replaceAll(/[^a-z]+/g, '-')}1`;
    const digests = await pushEarlier(name);
    registry.behave(oddity);
    const made = await release(name);
    expect(made).toMatchObject({ code: 1, manifests: '' });
    expect(made.log).toMatch(why);
    expect(await digestsOf(name)).toEqual(digests);
  });

  test('reading is allowed only after a push', { timeout: 4 * minutes }, async () => {
    const name = 'kept-and-taken';
    const digests = await pushEarlier(name);
    const pushed = new Set<string>();
    registry.behave((asked) => {
      if (asked.kind === 'manifests' && asked.method === 'PUT') pushed.add(asked.repository);
      return isRead(asked) && !pushed.has(asked.repository) ? 403 : undefined;
    });
    const made = await release(name);
    expect(made).toMatchObject({ code: 0 });
    expect(made.log.match(/is in the registry already/g)).toHaveLength(services.length);
    for (const [n, { release: tag }] of services.entries())
      expect(made.manifests).toContain(`:${tag}@${digests[n]}\n`);
    expect(await digestsOf(name)).toEqual(digests);
  });
});

describe('nothing is built if the registry answers a read with', () => {
  test.each([500, 503, 429, 400])('%d', { timeout: minutes }, async (status) => {
    registry.behave((asked) => (isRead(asked) ? status : undefined));
    const made = await release(`unknown-${status}`);
    expect(made).toMatchObject({ code: 1, manifests: '' });
    expect(made.log).toContain('the registry does not tell whether it has');
    expect(made.log).not.toContain('building');
  });
});

test('uncommitted changes are not pushed, not even as a candidate', { timeout: minutes }, async () => {
  const name = 'changed';
  registry.behave((asked) => (isRead(asked) && !asked.isKnown ? 403 : undefined));
  const file = join(folder, 'libraries/chassis/src/new.ts');
  await writeFile(file, '');
  const made = await release(name);
  await rm(file);
  expect(made).toMatchObject({ code: 1, manifests: '' });
  expect(made.log).toMatch(
    /[a-z0-9-]+:[0-9.]+ cannot be read with this login, and there are changes that are/,
  );
  for (const service of services) {
    const { status } = await fetch(`http://${registry.plainHost}/v2/${name}/${service.name}/tags/list`);
    expect(status).toBe(404);
  }
});
