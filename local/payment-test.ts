// Runs the payment test at the start and after every save, for `make up`: `payment-test.ts URL`. Prints one line if the
// test passes, its whole output if it fails, and nothing if a save interrupts it. With LOG_LEVEL set prints every line.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { watch } from '../libraries/chassis/dev/watcher.ts';
import { hashSource, sourceFolders } from '../libraries/chassis/src/source.ts';
import { readServices } from '../scripts/services.ts';

const root = resolve(import.meta.dirname, '..');
const services = readServices().map(({ name }) => name);
/** How long after a save the test starts, in milliseconds: the service that reloads needs the CPU first. */
const delay = 50;
/** How often the sources are polled for a save that nodemon missed, in milliseconds. */
const pollInterval = 1_000;
/** How long nodemon may take to report a save, in milliseconds, before it counts as missed. */
const watcherDelay = 300;

const [url = ''] = process.argv.slice(2);
const isVerbose = Boolean(process.env.LOG_LEVEL);

/** A run of test.sh that can be stopped. */
interface Run {
  /** Identifies the code that it tests, see `tested`. */
  of: string;
  stop(): Promise<void>;
}

let run: Run | undefined;
let timer: NodeJS.Timeout | undefined;
let reportedAt = 0;

/** Identifies the code that a run tests. A missing file changes the result, and so does its return. */
function tested(): string {
  let script = '';
  try {
    script = readFileSync(resolve(root, 'test.sh'), 'latin1');
  } catch {
    // A save is replacing the file.
  }
  return [...services.map((service) => hashSource(root, service)), script].join('\n');
}

/** @param savedAt when a save was noticed, in milliseconds of `performance.now()`; undefined at the start */
function startSoon(savedAt?: number): void {
  clearTimeout(timer);
  timer = setTimeout(() => void restart(savedAt), delay);
}

async function restart(savedAt?: number): Promise<void> {
  const old = run;
  run = undefined;
  await old?.stop();
  run ??= start(savedAt);
}

function start(savedAt?: number): Run {
  const startedAt = performance.now();
  const child = spawn('./test.sh', [url, '1'], { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
  const lines: string[] = [];
  const passed: string[] = [];
  let servedAt = startedAt;
  let isStopped = false;
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on('line', (line) => {
      if (line.startsWith('ok 1 ')) servedAt = performance.now();
      // This run waits for a test that was started by hand, which may take a while, so this line is printed now.
      if (isVerbose || line.startsWith('# waiting')) say(line);
      else lines.push(line);
      if (line.startsWith('ok ')) passed.push(line);
    });
  }
  child.on('error', (error) => say(`not ok: test.sh cannot be run: ${error.message}`));
  child.on('close', (code) => {
    if (isStopped) return;
    const skipped = passed.filter((line) => line.includes(' # SKIP ')).length;
    const checks = `${passed.length} checks${skipped === 0 ? '' : ` (${skipped} skipped)`}`;
    const seconds = `${((performance.now() - startedAt) / 1_000).toFixed(1)} s`;
    const served = savedAt === undefined ? '' : `; served after ${Math.round(servedAt - savedAt)} ms`;
    say(
      code === 0
        ? `passed, ${checks}, ${seconds}${served}`
        : [...lines, `not ok: failed after ${seconds}`].join('\n'),
    );
  });
  return {
    of: tested(),
    async stop() {
      isStopped = true;
      if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
      child.kill();
      await once(child, 'exit');
    },
  };
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

// If `make up` is killed, the output has no reader. The next `make up` stops this process and all that it started.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});

function onChange(): void {
  reportedAt = performance.now();
  startSoon(reportedAt);
}

const paths = [...new Set(services.flatMap(sourceFolders)), 'test.sh'];
const watcher = watch({ root, paths, onChange, say });
setInterval(() => {
  if (run === undefined || run.of === tested()) return;
  const foundAt = performance.now();
  setTimeout(() => {
    if (reportedAt > foundAt - watcherDelay) return;
    watcher.renew();
    startSoon(foundAt);
  }, watcherDelay);
}, pollInterval);
startSoon();
