// Measures how fast a save is served: `make bench-loop`, ROUNDS saves of each service. Linux only: two of
// the measured servers, `floor` and `plain`, are requested at the address of the cluster's node.
import { execFile, execFileSync, spawnSync } from 'node:child_process';
import { cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { cpus, loadavg, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { kubectl, url } from '../../tests/cluster/cluster.ts';
import { Tilt } from '../../tests/cluster/tilt.ts';
import { percentile } from './clock.ts';
import { CountingProxy } from './counting-proxy.ts';
import { startLocal } from './local.ts';
import { draw } from './picture.ts';
import { changeDependency, changeDockerfile, countBytes, type Rebuild } from './rebuilds.ts';
import { installUnsuitable } from '../../scripts/tools.ts';
import { runRounds, type Figures, type Rounds } from './rounds.ts';
import { floorWay, plainWay, services, serviceWay } from './ways.ts';

const rounds = Number(process.env.ROUNDS || 50);
const root = resolve(import.meta.dirname, '../..');
/** How long `tilt up` may take with images to build, in seconds. */
const upTimeout = 300;
const picture = 'docs/loop.svg';

const say = (text: string) => process.stderr.write(`bench-loop: ${text}\n`);

class Refusal extends Error {}

/** Rejects on a signal, so that everything started is stopped before this process exits. */
const interrupted = new Promise<never>((_resolve, reject) => {
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => reject(new Refusal('interrupted')));
});
interrupted.catch(() => {});
const orInterrupted = <T>(work: Promise<T>) => Promise.race([work, interrupted]);

/** Creates the cluster if it is missing. @returns whether it did, so that the benchmark removes it */
async function findCluster(): Promise<boolean> {
  if (process.platform !== 'linux')
    throw new Refusal('runs only on Linux, where this machine reaches the address of the cluster node');
  await installUnsuitable(['tilt', 'kind', 'ctlptl', 'kubectl', 'kustomize'], process.env);
  if (spawnSync('tilt', ['get', 'session']).status === 0) {
    throw new Refusal('Tilt is running. Stop `tilt up` first.');
  }
  const { stdout } = await promisify(execFile)('kind', ['get', 'clusters']);
  if (stdout.split('\n').includes('payloop')) return false;
  say('creates the cluster, and removes it at the end');
  execFileSync('ctlptl', ['apply', '-f', 'ctlptl.yaml'], { cwd: root, stdio: ['ignore', 2, 2] });
  return true;
}

/** Measures each service, the floor and the plain way in turn under `tilt up`. */
async function measureCluster(): Promise<Rounds> {
  const args = ['--file=bench/loop/Tiltfile', '--', '--overlay=../../bench/loop/overlay'];
  const tilt = await orInterrupted(Tilt.up({ args, seconds: upTimeout, prepare: copyForPlain }));
  try {
    const nodes = await kubectl('get', 'nodes', '--output=json');
    const { addresses } = JSON.parse(nodes).items[0].status;
    const node = addresses.find(({ type }: { type: string }) => type === 'InternalIP').address;
    const { folder } = tilt;
    const [first, second] = services.map((service) => serviceWay(folder, service, url));
    const floor = floorWay(folder, `http://${node}:30084`);
    const plain = plainWay(folder, `http://${node}:30083`);
    return await orInterrupted(
      runRounds(rounds, {
        folder,
        url,
        log: () => tilt.log,
        ways: [floor, first!, second!, plain],
        say,
      }),
    );
  } finally {
    await tilt.down();
  }
}

async function copyForPlain(folder: string): Promise<void> {
  await mkdir(join(folder, 'plain'));
  for (const name of [
    'package.json',
    'package-lock.json',
    '.npmrc',
    'local/package.json',
    'services',
    'libraries',
  ]) {
    await cp(join(folder, name), join(folder, 'plain', name), { recursive: true });
  }
}

interface Changes {
  bytes: { service: string; size: number; bytes: number }[];
  rebuilds: Rebuild[];
}

/** Measures the bytes sent and the images built, under the project's own `tilt up`. */
async function measureChanges(): Promise<Changes> {
  const temporary = await mkdtemp(join(tmpdir(), 'payloop-'));
  const { KUBECONFIG } = process.env;
  const proxy = await CountingProxy.start('kind-payloop', join(temporary, 'kubeconfig'));
  process.env.KUBECONFIG = join(temporary, 'kubeconfig');
  try {
    const tilt = await orInterrupted(Tilt.up({ seconds: upTimeout }));
    try {
      return await orInterrupted(runChanges(tilt, proxy));
    } finally {
      await tilt.down();
    }
  } finally {
    if (KUBECONFIG === undefined) delete process.env.KUBECONFIG;
    else process.env.KUBECONFIG = KUBECONFIG;
    proxy.stop();
    await rm(temporary, { recursive: true });
  }
}

async function runChanges(tilt: Tilt, proxy: CountingProxy): Promise<Changes> {
  const bytes = [];
  for (const service of services) bytes.push({ service, ...(await countBytes(tilt, service, url, proxy)) });
  const rebuilds = [await changeDependency(tilt, url), await changeDockerfile(tilt, url)];
  return { bytes, rebuilds };
}

/** Measures saves of each service in local mode. */
async function measureLocal(): Promise<Rounds> {
  const local = await startLocal(interrupted);
  try {
    const ways = services.map((service) => serviceWay(local.folder, service, local.url));
    return await orInterrupted(runRounds(rounds, { ...local, ways, say }));
  } finally {
    await local.stop();
  }
}

async function report(cluster: Rounds, changes: Changes, local: Rounds): Promise<string> {
  const localFigures = local.figures.map((each) => ({ ...each, name: `${each.name}, local` }));
  const all = [...cluster.figures, ...localFigures];
  const strips = all.map(({ name, served }) => ({ name, values: served }));
  await writeFile(
    join(root, picture),
    draw(
      'From a save to the first answer that shows it, ms: each dot is a save, the line their median',
      strips,
    ),
  );

  const [floor, ...ours] = cluster.figures;
  const plain = ours.pop();
  const p50 = ({ served }: Figures) => percentile(served, 0.5);
  const floorMs = p50(floor!);
  const ms = (value: number) => value.toFixed(0);
  const ratio = (value: number) => (value / floorMs).toFixed(2);
  const lines = all.map(({ name, served, tested }) => {
    const [p95, worst] = [percentile(served, 0.95), Math.max(...served)];
    const test = tested.length > 0 ? ms(percentile(tested, 0.5)) : '';
    const cells = [
      name,
      ms(percentile(served, 0.5)),
      ms(p95),
      ms(worst),
      ratio(percentile(served, 0.5)),
      ratio(p95),
      test,
    ];
    return `| ${cells.join(' | ')} |`;
  });
  const slowestP50 = Math.max(...ours.map(p50));
  const failedRequests = cluster.failed + local.failed;
  const summary = {
    floorMs: Math.round(floorMs),
    p50Ms: Math.round(slowestP50),
    p95Ms: Math.round(Math.max(...ours.map(({ served }) => percentile(served, 0.95)))),
    plainMs: Math.round(p50(plain!)),
    p50VsFloor: Number(ratio(slowestP50)),
    failedRequests,
  };
  return `${machine}; ${rounds} saves each

| way | p50, ms | p95 | worst | p50 / floor's p50 | p95 / floor's p50 | save to test passed, p50 |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
${lines.join('\n')}

Requests meanwhile: ${cluster.sent} to the cluster, ${cluster.failed} failed; ${local.sent} to local processes, ${local.failed} failed.
${[...cluster.failures, ...local.failures].map(([failure, times]) => `${times} × ${failure}\n`).join('')}
| change | bytes sent | images built | layers not from the cache | from save to serving |
| --- | ---: | --- | --- | ---: |
${changes.bytes.map(({ service, size, bytes }) => `| a line of service.ts of ${service}, a file of ${size} bytes | ${bytes} | none | none | as above |`).join('\n')}
${changes.rebuilds.map(({ what, images, layers, seconds }) => `| ${what} | | ${images.join(', ')} | ${layers.join(', ') || 'none'} | ${seconds.toFixed(1)} s |`).join('\n')}

${JSON.stringify(summary)}
`;
}

const machine = `${cpus().length} cores, ${cpus()[0]?.model.trim()}, Node ${process.version}, load average ${loadavg()[0]?.toFixed(1)} before`;

async function main(): Promise<void> {
  const isCreated = await findCluster();
  try {
    const cluster = await measureCluster();
    const changes = await measureChanges();
    const local = await measureLocal();
    process.stdout.write(await report(cluster, changes, local));
  } finally {
    if (isCreated) execFileSync('scripts/down.sh', { cwd: root, stdio: ['ignore', 2, 2] });
  }
}

try {
  await main();
} catch (error) {
  say(error instanceof Refusal ? error.message : String(error instanceof Error ? error.stack : error));
  process.exitCode = 1;
}
process.exit();
