import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import { afterAll, beforeAll, beforeEach, expect, onTestFailed, test } from 'vitest';
import { exec } from '../../api.ts';
import {
  isReady,
  kubectl,
  nodeContainer,
  overlay,
  pods,
  restarts,
  paying,
  readyPod,
  until,
  type Pod,
} from '../../cluster.ts';
import { append, folderSources, runningSources, waitUntilServed } from '../../saves.ts';
import { Tilt } from '../../tilt.ts';

const run = promisify(execFile);
const seconds = 120;
const built = /Building image|STEP 1/;

let tilt: Tilt;
beforeAll(async () => {
  tilt = await Tilt.up({ args: ['--', `--overlay=${overlay}`], seconds: 200 });
}, 240_000);
afterAll(() => tilt?.down());
beforeEach(() => onTestFailed(() => void process.stdout.write(`End of Tilt's log:\n${tilt.tail()}\n`)));

async function podOf(service: string): Promise<Pod | undefined> {
  const [pod, ...others] = await pods(service);
  return others.length === 0 ? pod : undefined;
}

/** Waits until each service has a new pod that is ready. */
async function waitForNewPods(before: (Pod | undefined)[]): Promise<void> {
  await until('each service has a new pod', seconds, async () => {
    const now = await Promise.all(paying.map(podOf));
    return now.every((pod, at) => pod && isReady(pod) && pod.metadata.uid !== before[at]?.metadata.uid);
  });
}

async function inService(...command: string[]): Promise<string> {
  return exec('payment-provider', (await readyPod('payment-provider')).metadata.name, command);
}

async function replace(file: string, from: string, to: string): Promise<() => Promise<void>> {
  const path = join(tilt.folder, file);
  const before = await readFile(path, 'utf8');
  expect(before).toContain(from);
  await writeFile(path, before.replace(from, to));
  return () => writeFile(path, before);
}

/** Changes of files, each with a command that succeeds only in a container with the change. */
const changes = [
  {
    file: 'services/payment-provider/package.json',
    from: '"Charges payments',
    to: '"Charges all payments',
    shown: ['grep', 'all payments', 'services/payment-provider/package.json'],
  },
  {
    file: 'libraries/chassis/dev/watcher.ts',
    from: 'import ',
    to: '// edited\nimport ',
    shown: ['grep', 'edited', 'libraries/chassis/dev/watcher.ts'],
  },
  {
    file: 'Dockerfile',
    from: 'FROM sources AS dev\n',
    to: 'FROM sources AS dev\nENV EDITED=yes\n',
    shown: ['printenv', 'EDITED'],
  },
];

test.each(changes)(
  'a change of $file, which live update cannot copy, is logged by name and rebuilds the image',
  { timeout: 400_000 },
  async ({ file, from, to, shown }) => {
    const position = tilt.log.length;
    const before = await Promise.all(paying.map(podOf));
    const undo = await replace(file, from, to);
    await waitForNewPods(before);
    const log = tilt.log.slice(position);
    for (const service of ['invoice-app', 'payment-prov…']) {
      expect(log).toMatch(
        new RegExp(`${service} │ 1 File Changed: \\[${file}\\]\n[^]*${service} │ STEP 1/3`),
      );
    }
    await expect(inService(...shown)).resolves.toMatch(/\S/);
    await waitUntilServed(tilt, seconds);

    // Live update still copies a save of a source file.
    const end = tilt.log.length;
    await append(tilt, 'libraries/chassis/src/run.ts', `// after ${file}\n`);
    await waitUntilServed(tilt, seconds);
    expect(tilt.log.slice(end)).not.toMatch(built);

    const edited = await Promise.all(paying.map(podOf));
    await undo();
    await waitForNewPods(edited);
    await expect(inService(...shown)).rejects.toThrow('exit code 1');
    await waitUntilServed(tilt, seconds);
  },
);

test('a container has the saved files after its process is killed', { timeout: 200_000 }, async () => {
  const from = tilt.log.length;
  await append(tilt, 'services/payment-provider/src/main.ts', '// kept\n');
  await waitUntilServed(tilt, seconds);
  const before = await podOf('payment-provider');
  // Sent from outside the pod, because no signal from inside kills a container's first process.
  const found = await run('docker', [
    'exec',
    nodeContainer,
    'pgrep',
    '--full',
    'chassis/dev/serve.ts payment-provider',
  ]);
  await run('docker', ['exec', nodeContainer, 'kill', '-KILL', ...found.stdout.trim().split('\n')]);
  await until('the container is restarted', seconds, async () => {
    const now = await podOf('payment-provider');
    return now && before && restarts(now) === restarts(before) + 1;
  });
  await waitUntilServed(tilt, seconds);
  expect((await podOf('payment-provider'))?.metadata.uid).toBe(before?.metadata.uid);
  expect(tilt.log.slice(from)).not.toMatch(built);
});

test('the pod that replaces a deleted one has the saved files', { timeout: 200_000 }, async () => {
  await append(tilt, 'services/invoice-app/src/main.ts', '// kept\n');
  await waitUntilServed(tilt, seconds);
  const before = await podOf('invoice-app');
  await kubectl('delete', 'pod', `${before?.metadata.name}`, '--namespace=invoice-app');
  await waitUntilServed(tilt, seconds);
  expect((await podOf('invoice-app'))?.metadata.uid).not.toBe(before?.metadata.uid);
});

/** Commits all changes in the folder to the current branch. */
async function commit(message: string): Promise<void> {
  const identity = ['-c', 'user.name=test', '-c', 'user.email=test@localhost'];
  await git('add', '--all');
  await git(...identity, 'commit', '--quiet', '--no-verify', `--message=${message}`);
}

function git(...args: string[]) {
  return run('git', args, { cwd: tilt.folder });
}

test(
  'the last of several checked-out branches is served when they differ in sources and in images',
  { timeout: 600_000 },
  async () => {
    const [{ file, from, to, shown }] = changes as [(typeof changes)[0]];
    await git('init', '--quiet', '--initial-branch=one');
    await commit('one');
    await git('checkout', '--quiet', '-b', 'two');
    await replace(file, from, to);
    await append(tilt, 'libraries/chassis/src/run.ts', '// of branch two\n');
    await commit('two');
    await waitUntilServed(tilt, seconds);
    await until('the image of branch two', seconds, () => inService(...shown));

    for (const branch of ['one', 'two', 'one', 'two', 'one']) {
      await git('checkout', '--quiet', branch);
      await setTimeout(1_500);
    }
    await until('the image of branch one', seconds, () =>
      inService(...shown).then(
        () => false,
        (error: Error) => /exit code 1/.test(error.message),
      ),
    );
    await waitUntilServed(tilt, seconds);
    // A late rebuild or live update would change it again.
    await setTimeout(5_000);
    expect(await runningSources()).toEqual(folderSources(tilt));
  },
);

test(
  'live updates are gone after they are undone together with a Dockerfile change that yields the same image',
  { timeout: 400_000 },
  async () => {
    // From here on, the pods run an image that was built from the folder.
    const before = await Promise.all(paying.map(podOf));
    const mend = await replace('Dockerfile', 'FROM sources AS dev\n', 'FROM sources AS dev\nENV FRESH=yes\n');
    await waitForNewPods(before);
    const undo = await append(tilt, 'libraries/chassis/src/run.ts', '// only live\n');
    await waitUntilServed(tilt, seconds);
    await Promise.all([undo(), append(tilt, 'Dockerfile', '# the same image\n')]);
    await waitUntilServed(tilt, seconds);
    expect(await runningSources()).toEqual(folderSources(tilt));
    await mend();
  },
);
