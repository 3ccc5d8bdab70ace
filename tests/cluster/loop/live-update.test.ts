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
import { exec } from '../api.ts';
import { pods, restarts, paying, until, url } from '../cluster.ts';
import {
  append,
  containers,
  folderSources,
  reloads,
  runningSources,
  waitUntilServed,
  waitUntilTested,
} from '../saves.ts';
import { Tilt } from '../tilt.ts';
import { trickleOfAll } from '../trickle.ts';

const run = promisify(execFile);
const built = /Building image|STEP 1/;

describe('under tilt up', () => {
  let tilt: Tilt;
  beforeAll(async () => {
    // The first start may have to build the images.
    tilt = await Tilt.up({ seconds: 280 });
  }, 300_000);
  afterAll(() => tilt?.down());
  beforeEach(() => onTestFailed(() => void process.stdout.write(`End of Tilt's log:\n${tilt.tail()}\n`)));

  // This test runs first, because an edit in another test may trigger a payment test later.
  test('an edit of a test file triggers nothing', async () => {
    const before = tilt.log.length;
    await append(tilt, 'services/invoice-app/src/service.test.ts', '// edited\n');
    // Longer than an edit of a source file takes to be served.
    await setTimeout(3_000);
    expect(tilt.log.slice(before)).not.toMatch(/│ .*(Building|Running cmd|updated!)/);
  });

  test.each([
    'services/invoice-app/src/main.ts',
    'services/payment-provider/src/main.ts',
    'libraries/chassis/src/run.ts',
  ])('an edit of %s is served without a rebuild, and the payment test passes against it', async (file) => {
    const before = { containers: await containers(), sources: await runningSources(), log: tilt.log.length };
    expect(before.sources).toEqual(folderSources(tilt));

    await append(tilt, file, `// ${Math.random()}\n`);
    const saved = performance.now();
    expect(folderSources(tilt)).not.toEqual(before.sources);
    await waitUntilServed(tilt);
    process.stdout.write(
      `# from the save to the first answer: ${Math.round(performance.now() - saved)} ms\n`,
    );

    await waitUntilTested(tilt, before.log);
    expect(await containers()).toEqual(before.containers);
    expect(tilt.log.slice(before.log)).not.toMatch(built);
  });

  test('the last of two saves within a second is served', async () => {
    const from = tilt.log.length;
    // Both saves must fall in the same second of the clock: Tilt gives copied files times of whole seconds.
    await setTimeout(1_050 - (Date.now() % 1_000));
    await append(tilt, 'services/invoice-app/src/main.ts', '// the first\n');
    await setTimeout(500);
    await append(tilt, 'services/invoice-app/src/main.ts', '// the last\n');
    await waitUntilTested(tilt, from);
    expect(await runningSources()).toEqual(folderSources(tilt));
  });

  test('ten files saved at once cause one reload', async () => {
    const before = { containers: await containers(), log: tilt.log.length };
    const files = [
      ...['config', 'database', 'log', 'money', 'server'].map((name) => `libraries/chassis/src/${name}`),
      ...['batches', 'invoices', 'payments', 'provider', 'service'].map(
        (name) => `services/invoice-app/src/${name}`,
      ),
    ];
    await Promise.all(files.map((file) => append(tilt, `${file}.ts`, '// one of ten\n')));
    await waitUntilServed(tilt);
    // After a change, the reloader polls the files for 3 s.
    await setTimeout(3_500);
    expect(paying.map((service) => reloads(tilt, service, before.log))).toEqual([1, 1]);
    expect(await containers()).toEqual(before.containers);
  });

  test('no request fails while both services reload', async () => {
    const before = { containers: await containers(), log: tilt.log.length };
    const requests = trickleOfAll(url);
    onTestFinished(() => void requests.stop());
    const main = paying.map((service) => `services/${service}/src/main.ts`);
    for (const file of [...main, 'libraries/chassis/src/run.ts', ...main]) {
      await append(tilt, file, `// ${Math.random()}\n`);
      await waitUntilServed(tilt);
    }
    const answers = await requests.stop();
    process.stdout.write(`# answers during six reloads: ${JSON.stringify(answers)}\n`);
    expect(Object.keys(answers)).toEqual(['200']);
    expect(paying.map((service) => reloads(tilt, service, before.log))).toEqual([3, 3]);
    expect(await containers()).toEqual(before.containers);
  });

  test('a syntax error is logged once, the last good code keeps serving, and the next good save serves', async () => {
    const before = { containers: await containers(), sources: await runningSources(), log: tilt.log.length };
    const requests = trickleOfAll(url);
    onTestFinished(() => void requests.stop());
    const mend = await append(tilt, 'services/invoice-app/src/service.ts', 'const = 1;\n');
    await tilt.waitForLine(
      /\[reload\] invoice-app did not start .*The previous code keeps serving/,
      before.log,
      15,
    );
    // After a change, the reloader polls the files for 3 s.
    await setTimeout(3_500);
    expect(tilt.log.slice(before.log).match(/invoice-app │ .*SyntaxError/g)).toHaveLength(1);
    expect(tilt.log.slice(before.log)).toContain('services/invoice-app/src/service.ts:');
    expect(await runningSources()).toEqual(before.sources);
    // These requests stop before the next payment test, because they would pay its invoices.
    expect(Object.keys(await requests.stop())).toEqual(['200']);

    const position = tilt.log.length;
    await mend();
    await append(tilt, 'services/invoice-app/src/service.ts', '// mended\n');
    await waitUntilTested(tilt, position);
    expect(await containers()).toEqual(before.containers);
  });

  test('code that crashes while serving is logged and restarted, and the next good save is served', async () => {
    const before = { containers: await containers(), log: tilt.log.length };
    const crash = "setTimeout(() => { throw new Error('crashed by an edit'); }, 300);\n";
    const mend = await append(tilt, 'services/invoice-app/src/main.ts', crash);
    await tilt.waitForLine(/invoice-app │ .*Error: crashed by an edit/, before.log, 20);
    await tilt.waitForLine(/\[reload\] invoice-app exited unexpectedly .* is restarted/, before.log, 5);
    // The second crash shows that it was restarted.
    await tilt.waitForLine(/(Error: crashed by an edit[^]*){2}/, before.log, 20);

    const position = tilt.log.length;
    await mend();
    await append(tilt, 'services/invoice-app/src/main.ts', '// mended\n');
    await waitUntilTested(tilt, position);
    expect(await containers()).toEqual(before.containers);
  });

  test('a restarted container has the saved files', async () => {
    const from = tilt.log.length;
    await append(tilt, 'services/invoice-app/src/main.ts', '// kept\n');
    await waitUntilServed(tilt);
    const [before] = await pods('invoice-app');
    // The image has no kill program, but the shell has the command built in.
    await exec('invoice-app', before!.metadata.name, ['sh', '-c', 'kill -TERM 1']);
    await until('the container is restarted', 30, async () => {
      const [now] = await pods('invoice-app');
      return now && before && restarts(now) === restarts(before) + 1;
    });
    await waitUntilServed(tilt);
    const [now] = await pods('invoice-app');
    expect(now?.metadata.uid).toBe(before?.metadata.uid);
    expect(tilt.log.slice(from)).not.toMatch(built);
  });

  test('a branch that changes, adds and removes files is served after its checkout', async () => {
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
    await waitUntilServed(tilt);

    await git('checkout', '--quiet', 'one');
    await waitUntilServed(tilt);
    // The last checkout comes while Tilt is still copying the first.
    for (const branch of ['two', 'one', 'two', 'one', 'two']) {
      await git('checkout', '--quiet', branch);
      await setTimeout(200);
    }
    await waitUntilTested(tilt, from);
    await waitUntilServed(tilt);
    expect(tilt.log.slice(from)).not.toMatch(built);
  });
});
