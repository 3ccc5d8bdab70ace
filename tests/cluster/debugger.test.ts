import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { inspectPortOf, readServices } from '../../scripts/services.ts';
import { Debugger } from '../support/debugger.ts';
import { isReady, overlay, paying, pods, restarts, runScript, until, url } from './cluster.ts';
import { Tilt } from './tilt.ts';

const run = promisify(execFile);
const root = resolve(import.meta.dirname, '../..');

interface Attach {
  name: string;
  remoteRoot: string;
}

/** Breakpoints that pause one request only, because the payment test may run at the same time. */
const breakpoints = {
  'invoice-app': {
    line: 'const query = description.invoiceQuery.safeParse(',
    condition: `request.query.limit === '7'`,
    ask: () => fetch(`${url}/invoices?limit=7`).then(({ status }) => status),
    answer: 200,
  },
  'payment-provider': {
    line: 'const fault = faults.draw(',
    condition: `body === 'stop'`,
    // invoice-app sends the request, because the provider requires its token.
    ask: async () => {
      const script = `
        const { readFileSync } = process.getBuiltinModule('node:fs');
        const headers = { Authorization: 'Bearer ' + readFileSync(process.env.TOKEN_FILE, 'utf8').trim() };
        const url = process.env.PAYMENT_PROVIDER_URL;
        const { status } = await fetch(url, { method: 'POST', headers, body: '"stop"' });
        console.log(status);`;
      return Number(await runScript('invoice-app', 'deployment/invoice-app', script));
    },
    answer: 400,
  },
};

describe.runIf(overlay === 'dev')('under tilt up -- --debug', () => {
  let tilt: Tilt;
  let configurations: Attach[];
  beforeAll(async () => {
    ({ configurations } = JSON.parse(await readFile(join(root, '.vscode/launch.json'), 'utf8')));
    tilt = await Tilt.up({ args: ['--', '--debug'] });
  });
  afterAll(() => tilt?.down());

  /** Attaches as an editor does, and sends a request that pauses at the breakpoint. */
  async function pauseRequest(service: (typeof paying)[number]) {
    const { remoteRoot } = configurations.find(({ name }) => name === 'service (cluster)')!;
    const port = inspectPortOf(readServices().find(({ name }) => name === service)!);
    const attached = await until(`an inspector at ${port}`, 20, () => Debugger.attach(port));
    const file = `services/${service}/src/service.ts`;
    const { line: text, condition, ask } = breakpoints[service];
    const lines = (await readFile(join(tilt.folder, file), 'utf8')).split('\n');
    const line = lines.findIndex((each) => each.includes(text)) + 1;
    expect(line, `of '${text}'`).toBeGreaterThan(0);
    const breakpoint = { url: `file://${remoteRoot}/${file}`, line };
    expect(await attached.breakAt(breakpoint.url, line, condition)).toEqual([line]);
    const paused = attached.paused();
    const answer = ask();
    const pause = await paused;
    expect(pause).toMatchObject(breakpoint);
    expect(await pause.evaluate(condition)).toBe(true);
    return { attached, answer };
  }

  const instances = async (service: string) =>
    (await pods(service)).map((pod) => ({
      name: pod.metadata.name,
      restarts: restarts(pod),
      ready: isReady(pod),
    }));

  // Takes onTestFailed from the context, as tests run at the same time.
  beforeEach(({ onTestFailed }) =>
    onTestFailed(() => void process.stdout.write(`End of Tilt's log:\n${tilt.tail()}\n`)),
  );

  test.concurrent.each(paying)(
    'a breakpoint pauses %s, and pauses it again after a save',
    async (service) => {
      const before = await instances(service);
      const { attached, answer } = await pauseRequest(service);
      await attached.resume();
      expect(await answer).toBe(breakpoints[service].answer);

      const from = tilt.log.length;
      const file = join(tilt.folder, `services/${service}/src/service.ts`);
      await writeFile(file, `// ${Math.random()}\n${await readFile(file, 'utf8')}`);
      const saved = performance.now();
      await attached.closed;
      const again = await pauseRequest(service);
      process.stdout.write(
        `# from the save to the next pause: ${Math.round(performance.now() - saved)} ms\n`,
      );
      await again.attached.resume();
      expect(await again.answer).toBe(breakpoints[service].answer);
      await again.attached.close();
      expect(await instances(service)).toEqual(before);
      expect(tilt.log.slice(from)).not.toMatch(/port-forward/i);
    },
  );

  test('a paused pod stays ready', async () => {
    const { attached, answer } = await pauseRequest('invoice-app');
    // Longer than the readiness probe tolerates when the inspector is closed.
    await setTimeout(8_000);
    expect((await pods('invoice-app')).map(isReady)).toEqual([true]);
    await attached.resume();
    expect(await answer).toBe(200);
    await attached.close();
  });
});

test('no production manifest opens an inspector', async () => {
  const { stdout } = await run('kustomize', ['build', join(root, 'kustomize/overlays/prod')]);
  expect(stdout).toContain('kind: Deployment');
  expect(stdout).not.toMatch(/inspect/i);
});

test('Tilt refuses --debug with a production overlay', async () => {
  const args = ['alpha', 'tiltfile-result', '--', '--overlay=prod', '--debug'];
  const output = await run('tilt', args, { cwd: root }).then(
    ({ stdout }) => stdout,
    ({ stdout, stderr }: { stdout: string; stderr: string }) => stdout + stderr,
  );
  expect(output).toContain('--debug is for development, --overlay=prod is not');
});

/** Reports the files of a production container, and the ports that are open in it 2 s after SIGUSR1. */
const probe = `
  const { readdirSync, readFileSync } = process.getBuiltinModule('node:fs');
  const listening = () => ['tcp', 'tcp6']
    .flatMap((table) => readFileSync('/proc/net/' + table, 'utf8').split('\\n').slice(1))
    .map((line) => line.trim().split(/\\s+/))
    .filter(([, , , state]) => state === '0A')
    .map(([, address]) => parseInt(address.split(':')[1], 16));
  process.kill(1, 'SIGUSR1');
  setTimeout(() => console.log(JSON.stringify({ files: readdirSync('/app'), ports: listening() })), 2_000);`;

describe.runIf(overlay === 'prod')('in production', () => {
  test.each(readServices())('$name has no inspector, and no signal opens one', async ({ name, port }) => {
    const { files, ports } = JSON.parse(await runScript(name, `deployment/${name}`, probe));
    const page = name === 'invoice-app' ? ['page'] : [];
    expect(files.toSorted()).toEqual(['main.js', 'main.js.map', ...page]);
    expect(ports).toContain(port);
    // Node's default inspector port.
    expect(ports).not.toContain(9229);
  });
});
