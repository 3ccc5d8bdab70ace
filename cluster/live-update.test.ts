import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFailed, test } from 'vitest';
import { hashSource } from '../services/kit/src/source.ts';
import { overlay, pods, restarts, services, until, url } from './cluster.ts';
import { Tilt } from './tilt.ts';

type Sources = Record<(typeof services)[number], string>;

interface Version {
  source: string;
  provider: { source: string } | null;
}

/** What the running services are made of; undefined when they do not answer. */
async function running(): Promise<Sources | undefined> {
  const response = await fetch(`${url}/version`, { signal: AbortSignal.timeout(2_000) });
  const { source, provider } = (await response.json()) as Version;
  return provider === null ? undefined : { 'invoice-app': source, 'payment-provider': provider.source };
}

async function containers(): Promise<unknown> {
  const found = (await Promise.all(services.map((service) => pods(service)))).flat();
  return found.map((pod) => ({ pod: pod.metadata.name, restarts: restarts(pod) }));
}

// In prod a save builds an image.
describe.runIf(overlay === 'dev')('under tilt up', () => {
  let tilt: Tilt;
  beforeAll(async () => {
    tilt = await Tilt.up();
  });
  afterAll(() => tilt?.down());
  beforeEach(() =>
    onTestFailed(() => void process.stdout.write(`Tilt's log ends in:\n${tilt.log.slice(-5_000)}\n`)),
  );

  function inFolder(): Sources {
    return Object.fromEntries(
      services.map((service) => [service, hashSource(tilt.folder, service)]),
    ) as Sources;
  }

  async function append(file: string, text: string): Promise<() => Promise<void>> {
    const path = join(tilt.folder, file);
    const before = await readFile(path, 'utf8');
    await writeFile(path, before + text);
    return () => writeFile(path, before);
  }

  /** The payment test passed against the code that is in the folder now. */
  async function tested(from: number): Promise<void> {
    const { 'invoice-app': app, 'payment-provider': provider } = inFolder();
    const line = 'payment-test │ ';
    const seen = `${line}# invoice-app ${app}\n *${line}# payment-provider ${provider}\n`;
    await tilt.says(new RegExp(`${seen}[^]*${line}ok 8`), from, 30);
  }

  // First, as a payment test that an edit has caused may still be due later.
  test('an edit of a test changes nothing', async () => {
    const before = tilt.log.length;
    await append('services/invoice-app/src/service.test.ts', '// edited\n');
    // Longer than an edit of a source takes.
    await setTimeout(3_000);
    expect(tilt.log.slice(before)).not.toMatch(/│ .*(Building|Running cmd|updated!)/);
  });

  test.each([
    'services/invoice-app/src/main.ts',
    'services/payment-provider/src/main.ts',
    'services/kit/src/run.ts',
  ])('an edit of %s is served without a rebuild, and the payment test passes against it', async (file) => {
    const before = { containers: await containers(), sources: await running(), log: tilt.log.length };
    expect(before.sources).toEqual(inFolder());

    await append(file, `// ${Math.random()}\n`);
    const saved = performance.now();
    const sources = inFolder();
    expect(sources).not.toEqual(before.sources);
    await until(`${url}/version shows the edit`, 20, async () => {
      const now = await running();
      return services.every((service) => now?.[service] === sources[service]);
    });
    process.stdout.write(
      `# from the save to the first answer: ${Math.round(performance.now() - saved)} ms\n`,
    );

    await tested(before.log);
    expect(await containers()).toEqual(before.containers);
    expect(tilt.log.slice(before.log)).not.toMatch(/Building image|STEP 1/);
  });

  test('of two saves within a second the last is served', async () => {
    const from = tilt.log.length;
    // Both in the same second of the clock: files that Tilt copies have times of whole seconds.
    await setTimeout(1_050 - (Date.now() % 1_000));
    await append('services/invoice-app/src/main.ts', '// the first\n');
    await setTimeout(500);
    await append('services/invoice-app/src/main.ts', '// the last\n');
    await tested(from);
    expect(await running()).toEqual(inFolder());
  });

  test('an edit that breaks the syntax is told, and the next good save is served', async () => {
    const before = { containers: await containers(), log: tilt.log.length };
    const mend = await append('services/invoice-app/src/service.ts', 'const = 1;\n');
    await tilt.says(/invoice-app │ .*SyntaxError/, before.log, 15);
    const told = tilt.log.length;

    await mend();
    await until(`${url}/version shows the mended code`, 20, async () => {
      return (await running())?.['invoice-app'] === inFolder()['invoice-app'];
    });
    await tested(told);
    expect(await containers()).toEqual(before.containers);
  });
});
