import { execFile } from 'node:child_process';
import { appendFile, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readServices } from '../../../../scripts/services.ts';
import { isReady, kubectl, kubectlWith, pods, readRegistry, services, until } from '../../cluster.ts';

/** Does the pipeline's work on main: pushes releases and applies them by digest as the group `ci`. */

const run = promisify(execFile);
const root = resolve(import.meta.dirname, '../../../..');
const objects = 'deployments,ingresses,networkpolicies,serviceaccounts,services';

let folder: string;
let registry: string;
/** The objects that this test replaces, to restore them for the other tests. */
let before: object[];
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'payloop-release-'));
  await run('git', ['clone', '--quiet', root, folder]);
  await symlink(join(root, 'node_modules'), join(folder, 'node_modules'));
  // .gitignore matches only a folder with this name, not a link.
  await appendFile(join(folder, '.git/info/exclude'), 'node_modules\n');
  registry = `${/^host: "?([^"\s]+)/m.exec(await readRegistry())![1]}/release-${Date.now()}`;
  before = await Promise.all(
    services.map(async (service) => {
      const { items } = JSON.parse(
        await kubectl('get', objects, `--namespace=${service}`, '--output=json'),
      ) as { items: { metadata: Record<string, unknown> }[] };
      for (const { metadata } of items) delete metadata.resourceVersion;
      return items;
    }),
  ).then((lists) => lists.flat());
}, 60_000);
afterAll(async () => {
  await kubectlWith(before, 'replace', '--filename=-');
  for (const service of services) await rolledOut(service);
  await rm(folder, { recursive: true });
}, 300_000);

/** Releases the last commit of the clone. */
async function release(): Promise<{ manifests: string; log: string }> {
  const { stdout, stderr } = await run(join(folder, 'scripts/release.sh'), [], {
    env: { ...process.env, REGISTRY: registry },
    maxBuffer: 64 * 1024 ** 2,
  });
  return { manifests: stdout, log: stderr };
}

const rolledOut = (service: string) =>
  kubectl('rollout', 'status', `deployment/${service}`, `--namespace=${service}`, '--timeout=240s');

test(
  'releases are pushed once, and applied by digest with the rights of ci',
  { timeout: 600_000 },
  async () => {
    const { manifests, log } = await release();
    expect(log.match(/building/g)).toHaveLength(services.length);
    const images = readServices(folder).map(({ name, release: tag }) => {
      const wanted = `${registry}/${name}:${tag}`.replaceAll('.', '\\.');
      const image = new RegExp(`image: (${wanted}@sha256:[0-9a-f]{64})\n`).exec(manifests)?.[1];
      expect(image, `of ${name}`).toBeDefined();
      return image!;
    });

    const file = join(folder, 'release.yaml');
    await writeFile(file, manifests);
    const applied = await kubectl('apply', `--filename=${file}`, '--as=pipeline', '--as-group=ci');
    for (const [n, service] of services.entries()) {
      expect(applied).toContain(`deployment.apps/${service} configured\n`);
      await rolledOut(service);
      const found = await until('every pod is ready', 60, async () => {
        const all = await pods(service);
        return all.every(isReady) && all;
      });
      expect(new Set(found.map(({ status }) => status.containerStatuses?.[0]?.imageID))).toEqual(
        new Set([images[n]!.replace(/:[^:]*@/, '@')]),
      );
    }

    // A release never changes, even if the sources have changed.
    const source = join(folder, 'services/invoice-app/src/main.ts');
    await writeFile(source, `${await readFile(source, 'utf8')}// Changed.\n`);
    const again = await release();
    expect(again.log).not.toContain('building');
    expect(again.manifests).toBe(manifests);

    // A new release requires that all changes are committed.
    const described = join(folder, 'services/invoice-app/deploy/service.yaml');
    const text = await readFile(described, 'utf8');
    await writeFile(described, text.replace(/release: .*/, 'release: 9.0.0'));
    await expect(release()).rejects.toThrow(
      /invoice-app:9\.0\.0 is not in the registry, and there are changes that are not committed/,
    );
  },
);

test('a registry that does not answer is reported, and nothing is built', { timeout: 60_000 }, async () => {
  registry = '127.0.0.1:1';
  await expect(release()).rejects.toThrow(
    /release: the registry does not tell whether it has 127\.0\.0\.1:1/,
  );
});
