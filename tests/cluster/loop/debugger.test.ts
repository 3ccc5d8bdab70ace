import { readFile, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { inspectPortOf, readServices } from '../../../scripts/services.ts';
import { Debugger } from '../../support/debugger.ts';
import { isReady, paying, pods, restarts, runScript, until, url } from '../cluster.ts';
import { Tilt } from '../tilt.ts';

const root = resolve(import.meta.dirname, '../../..');

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
      return Number(await runScript('invoice-app', script));
    },
    answer: 400,
  },
};

describe('under tilt up -- --debug', () => {
  let tilt: Tilt;
  let configurations: Attach[];
  beforeAll(async () => {
    ({ configurations } = JSON.parse(await readFile(join(root, '.vscode/launch.json'), 'utf8')));
    // The first start may have to build the images.
    tilt = await Tilt.up({ args: ['--', '--debug'], seconds: 280 });
  }, 300_000);
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
    // Rejects if the request fails before it pauses.
    const pause = await Promise.race([paused, answer.then(() => paused)]);
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
