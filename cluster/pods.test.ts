import { expect, test } from 'vitest';
import { inContainer, isReady, kubectl, overlay, pods, services, sql } from './cluster.ts';

const replicas = overlay === 'prod' ? 3 : 1;

test.each([...services.map((service) => [service, replicas] as const), ['postgres', 1] as const])(
  'every pod of %s is ready, %i in all',
  async (namespace, count) => {
    const found = await pods(namespace);
    expect(found.map(isReady)).toEqual(Array(count).fill(true));
  },
);

/** Reports on the process it runs as, and on where that can write; for both images, as prod's has no shell. */
const selfReport = `
  const { readFileSync, writeFileSync, rmSync } = require('node:fs');
  const status = readFileSync('/proc/self/status', 'utf8');
  const field = (name) => status.match(new RegExp('^' + name + ':\\\\s*(\\\\S+)', 'm'))[1];
  const canWrite = (folder) => {
    try {
      writeFileSync(folder + '/probe', '');
      rmSync(folder + '/probe');
      return true;
    } catch (error) {
      return error.code;
    }
  };
  console.log(JSON.stringify({
    user: [process.getuid(), process.getgid()],
    capabilities: [field('CapEff'), field('CapBnd')].map((mask) => parseInt(mask, 16)),
    gainsPrivileges: field('NoNewPrivs') !== '1',
    seccomp: field('Seccomp'),
    root: canWrite('/'), app: canWrite('/app'), tmp: canWrite('/tmp'),
  }))`;

test.each(services)('what %s may do is what its manifest says', async (service) => {
  const node = overlay === 'dev' ? 'node' : '/nodejs/bin/node';
  const report = await inContainer(service, `deployment/${service}`, [node, '--eval', selfReport]);
  expect(JSON.parse(report)).toEqual({
    user: [65532, 65532],
    capabilities: [0, 0],
    gainsPrivileges: false,
    // 2: system calls are filtered.
    seccomp: '2',
    root: 'EROFS',
    app: 'EROFS',
    tmp: true,
  });
});

test('Postgres runs as its own user, on a root that is read-only', async () => {
  const script = 'id -u; touch /probe 2>&1 || true';
  const report = await inContainer('postgres', 'postgres-0', ['sh', '-c', script]);
  expect(report).toMatch(/^999\n.*Read-only file system/);
});

test.each(services)('%s cannot read the database of the other', async (service) => {
  const other = services.find((each) => each !== service) ?? '';
  const database = other.replaceAll('-', '_');
  const role = service.replaceAll('-', '_');
  const answer = await sql('postgres', `SELECT has_database_privilege('${role}', '${database}', 'CONNECT')`);
  expect(answer.trim()).toBe('f');
});

test('only invoice-app can be reached from outside', async () => {
  const { items } = JSON.parse(await kubectl('get', 'services', '--all-namespaces', '--output=json'));
  const open = items
    .filter(({ spec }: { spec: { type: string } }) => spec.type !== 'ClusterIP')
    .map(({ metadata }: { metadata: { name: string } }) => metadata.name);
  expect(open).toEqual(['invoice-app']);
});

test('a pod that asks for more than a service may have is refused', async () => {
  const create = kubectl('run', 'root', '--namespace=invoice-app', '--image=postgres:18', '--dry-run=server');
  await expect(create).rejects.toThrow(/violates PodSecurity "restricted/);
});
