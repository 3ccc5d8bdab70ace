import { execFile } from 'node:child_process';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import {
  afterAll,
  beforeAll,
  beforeEach,
  describe,
  expect,
  onTestFailed,
  onTestFinished,
  test,
} from 'vitest';
import { inContainer, overlay, pods, restarts, paying, until, url } from './cluster.ts';
import { append, containers, inFolder, reloads, running, served, tested } from './saves.ts';
import { Tilt } from './tilt.ts';
import { trickleOfAll } from './trickle.ts';

const run = promisify(execFile);
const built = /Building image|STEP 1/;

// In prod a save builds an image.
describe.runIf(overlay === 'dev')('under tilt up', () => {
  let tilt: Tilt;
  beforeAll(async () => {
    tilt = await Tilt.up();
  });
  afterAll(() => tilt?.down());
  beforeEach(() => onTestFailed(() => void process.stdout.write(`Tilt's log ends in:\n${tilt.tail()}\n`)));

  // First, as a payment test that an edit has caused may still be due later.
  test('an edit of a test changes nothing', async () => {
    const before = tilt.log.length;
    await append(tilt, 'services/invoice-app/src/service.test.ts', '// edited\n');
    // Longer than an edit of a source takes.
    await setTimeout(3_000);
    expect(tilt.log.slice(before)).not.toMatch(/│ .*(Building|Running cmd|updated!)/);
  });

  test.each([
    'services/invoice-app/src/main.ts',
    'services/payment-provider/src/main.ts',
    'libraries/chassis/src/run.ts',
  ])('an edit of %s is served without a rebuild, and the payment test passes against it', async (file) => {
    const before = { containers: await containers(), sources: await running(), log: tilt.log.length };
    expect(before.sources).toEqual(inFolder(tilt));

    await append(tilt, file, `// ${Math.random()}\n`);
    const saved = performance.now();
    expect(inFolder(tilt)).not.toEqual(before.sources);
    await served(tilt);
    process.stdout.write(
      `# from the save to the first answer: ${Math.round(performance.now() - saved)} ms\n`,
    );

    await tested(tilt, before.log);
    expect(await containers()).toEqual(before.containers);
    expect(tilt.log.slice(before.log)).not.toMatch(built);
  });

  test('of two saves within a second the last is served', async () => {
    const from = tilt.log.length;
    // Both in the same second of the clock: files that Tilt copies have times of whole seconds.
    await setTimeout(1_050 - (Date.now() % 1_000));
    await append(tilt, 'services/invoice-app/src/main.ts', '// the first\n');
    await setTimeout(500);
    await append(tilt, 'services/invoice-app/src/main.ts', '// the last\n');
    await tested(tilt, from);
    expect(await running()).toEqual(inFolder(tilt));
  });

  test('ten files saved at once are one restart', async () => {
    const before = { containers: await containers(), log: tilt.log.length };
    const files = [
      ...['config', 'database', 'log', 'money', 'server'].map((name) => `libraries/chassis/src/${name}`),
      ...['batches', 'invoices', 'payments', 'provider', 'service'].map(
        (name) => `services/invoice-app/src/${name}`,
      ),
    ];
    await Promise.all(files.map((file) => append(tilt, `${file}.ts`, '// one of ten\n')));
    await served(tilt);
    // For as long it looks at the files again.
    await setTimeout(3_500);
    expect(paying.map((service) => reloads(tilt, service, before.log))).toEqual([1, 1]);
    expect(await containers()).toEqual(before.containers);
  });

  test('no request fails while saves of both services are taken up', async () => {
    const before = { containers: await containers(), log: tilt.log.length };
    const requests = trickleOfAll(url);
    onTestFinished(() => void requests.stop());
    const main = paying.map((service) => `services/${service}/src/main.ts`);
    for (const file of [...main, 'libraries/chassis/src/run.ts', ...main]) {
      await append(tilt, file, `// ${Math.random()}\n`);
      await served(tilt);
    }
    const answers = await requests.stop();
    process.stdout.write(`# answers while code was taken up six times: ${JSON.stringify(answers)}\n`);
    expect(Object.keys(answers)).toEqual(['200']);
    expect(paying.map((service) => reloads(tilt, service, before.log))).toEqual([3, 3]);
    expect(await containers()).toEqual(before.containers);
  });

  test('a save that breaks the syntax is told once, the last good code goes on serving, and the next good save serves', async () => {
    const before = { containers: await containers(), sources: await running(), log: tilt.log.length };
    const requests = trickleOfAll(url);
    onTestFinished(() => void requests.stop());
    const mend = await append(tilt, 'services/invoice-app/src/service.ts', 'const = 1;\n');
    await tilt.says(/\[reload\] invoice-app did not start .*The previous code keeps serving/, before.log, 15);
    // For as long as it looks at the files again.
    await setTimeout(3_500);
    expect(tilt.log.slice(before.log).match(/invoice-app │ .*SyntaxError/g)).toHaveLength(1);
    expect(tilt.log.slice(before.log)).toContain('services/invoice-app/src/service.ts:');
    expect(await running()).toEqual(before.sources);
    // Before the next payment test, whose invoices it would pay.
    expect(Object.keys(await requests.stop())).toEqual(['200']);

    const told = tilt.log.length;
    await mend();
    await append(tilt, 'services/invoice-app/src/service.ts', '// mended\n');
    await tested(tilt, told);
    expect(await containers()).toEqual(before.containers);
  });

  test('code that crashes once it serves is told and started again, and the next good save serves', async () => {
    const before = { containers: await containers(), log: tilt.log.length };
    const crash = "setTimeout(() => { throw new Error('crashed by an edit'); }, 300);\n";
    const mend = await append(tilt, 'services/invoice-app/src/main.ts', crash);
    await tilt.says(/invoice-app │ .*Error: crashed by an edit/, before.log, 20);
    await tilt.says(/\[reload\] invoice-app exited unexpectedly .* is restarted/, before.log, 5);
    // It crashes each time, so it was started again.
    await tilt.says(/(Error: crashed by an edit[^]*){2}/, before.log, 20);

    const told = tilt.log.length;
    await mend();
    await append(tilt, 'services/invoice-app/src/main.ts', '// mended\n');
    await tested(tilt, told);
    expect(await containers()).toEqual(before.containers);
  });

  test('a container that is started again has the files that were saved', async () => {
    const from = tilt.log.length;
    await append(tilt, 'services/invoice-app/src/main.ts', '// kept\n');
    await served(tilt);
    const [before] = await pods('invoice-app');
    // The shell does it, as the image has no program for it.
    await inContainer('invoice-app', 'deployment/invoice-app', ['sh', '-c', 'kill -TERM 1']);
    await until('the container is started again', 30, async () => {
      const [now] = await pods('invoice-app');
      return now && before && restarts(now) === restarts(before) + 1;
    });
    await served(tilt);
    const [now] = await pods('invoice-app');
    expect(now?.metadata.uid).toBe(before?.metadata.uid);
    expect(tilt.log.slice(from)).not.toMatch(built);
  });

  test('another branch is served, whatever it changes, adds and removes', async () => {
    const git = (...args: string[]) => run('git', args, { cwd: tilt.folder });
    const identity = ['-c', 'user.name=test', '-c', 'user.email=test@localhost'];
    const commit = async (message: string) => {
      await git('add', '--all');
      await git(...identity, 'commit', '--quiet', '--no-verify', `--message=${message}`);
    };
    const onlyOne = join(tilt.folder, 'services/invoice-app/src/only-one.ts');
    const from = tilt.log.length;
    await git('init', '--quiet', '--initial-branch=one');
    await writeFile(onlyOne, 'export const only = 1;\n');
    await commit('one');
    await git('checkout', '--quiet', '-b', 'two');
    await rm(onlyOne);
    await writeFile(join(tilt.folder, 'libraries/chassis/src/only-two.ts'), 'export const only = 2;\n');
    const inBoth = paying.map((service) => `services/${service}/src/main.ts`);
    for (const file of ['libraries/chassis/src/run.ts', ...inBoth]) {
      await append(tilt, file, '// of branch two\n');
    }
    await append(tilt, 'services/invoice-app/src/payments.ts', "import '@payloop/chassis/only-two.ts';\n");
    await commit('two');
    await served(tilt);

    await git('checkout', '--quiet', 'one');
    await served(tilt);
    // The last of several comes while the first is being copied.
    for (const branch of ['two', 'one', 'two', 'one', 'two']) {
      await git('checkout', '--quiet', branch);
      await setTimeout(200);
    }
    await tested(tilt, from);
    await served(tilt);
    expect(tilt.log.slice(from)).not.toMatch(built);
  });
});
