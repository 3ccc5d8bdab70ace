// Measures how long `make up` takes until the payment test has passed, by phase: `make bench-start`. The first run
// starts from nothing, the second with everything there. From nothing means a fresh clone without packages or cluster,
// with empty caches of npm and of image builds. The images of Node and of kind's node are there, and that of Postgres is
// in kind's node.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFile, readFile, rm, writeFile } from 'node:fs/promises';
import { cpus, loadavg } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { nodeContainer } from '../tests/cluster/cluster.ts';
import { installUnsuitable } from '../scripts/tools.ts';
import { copyProject } from '../tests/cluster/tilt.ts';
import { withoutMake } from '../tests/support/make.ts';

const root = resolve(import.meta.dirname, '..');
/** The timeout of a start, in milliseconds. */
const patience = 600_000;

/** An output line, with its time in seconds from the start. */
interface Line {
  at: number;
  text: string;
}

/** Consecutive phases, each with a pattern: the last line that matches it ends the phase. */
const phases: [string, RegExp][] = [
  ['the packages (npm ci) and missing tools', /^make up: cluster/],
  ['the cluster and its registry', /^Tilt started on/],
  ['Tilt, its Tiltfile, namespaces', /namespaces │ .*DONE IN/],
  ['images are built', /STEP 2\/3/],
  ['images are pushed', /STEP 3\/3/],
  ['pods are created, images pulled', /Successfully pulled image/],
  ['services start until both are ready', /payment-test │ Running cmd/],
  ['the payment test', /payment-test │ ok 8/],
];
/** The patterns at the start and the end of the database's start, which runs beside the image builds. */
const postgres: [RegExp, RegExp] = [
  /secrets │ Running cmd/,
  /database system is ready to accept connections/,
];

const say = (text: string) => process.stderr.write(`${text}\n`);

/**
 * Keeps the image builds of this copy from using caches of earlier builds. A unique comment in .npmrc invalidates the
 * cached layers. A unique id of the Dockerfile's cache mount gives npm an empty cache.
 */
async function avoidCaches(folder: string): Promise<void> {
  const unique = `bench-${process.pid}-${Date.now()}`;
  await appendFile(join(folder, '.npmrc'), `# ${unique}\n`);
  const file = join(folder, 'Dockerfile');
  const before = await readFile(file, 'utf8');
  const after = before.replace('target=/root/.npm', `target=/root/.npm,id=${unique}`);
  if (after === before) throw new Error('The Dockerfile has no npm cache mount any more');
  await writeFile(file, after);
}

/** Runs `make up` until the payment test has passed, then stops it. */
async function start(folder: string): Promise<Line[]> {
  const env = {
    ...withoutMake(process.env),
    MODE: 'cluster',
    OVERLAY: 'dev',
    npm_config_cache: join(folder, '.npm-cache'),
  };
  const begin = performance.now();
  const child = spawn('sh', ['-c', 'exec make up 2>&1'], {
    cwd: folder,
    env,
    detached: true,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = once(child, 'exit');
  const lines: Line[] = [];
  const late = setTimeout(() => process.kill(-child.pid!, 'SIGINT'), patience);
  let hasPassed = false;
  for await (const text of createInterface({ input: child.stdout })) {
    if (hasPassed) continue;
    lines.push({ at: (performance.now() - begin) / 1_000, text });
    if (/[^ ] │ .*(rror|not ok)|DONE IN|ok 8/.test(text)) say(`${lines.at(-1)?.at.toFixed(1)} s: ${text}`);
    hasPassed = text.includes('payment-test │ ok 8');
    if (hasPassed) process.kill(-child.pid!, 'SIGINT');
  }
  clearTimeout(late);
  await exited;
  if (!hasPassed)
    throw new Error(
      `make up did not pass the payment test. It printed:\n${lines
        .slice(-30)
        .map(({ text }) => text)
        .join('\n')}`,
    );
  return lines;
}

/** Returns the time of the last matching line; undefined if none matches. */
function last(lines: Line[], pattern: RegExp): number | undefined {
  return lines.findLast(({ text }) => pattern.test(text))?.at;
}

/** Returns the seconds of each phase, 0 for a missing one. */
function split(lines: Line[]): number[] {
  let before = 0;
  return phases.map(([, end]) => {
    const at = Math.max(before, last(lines, end) ?? before);
    const took = at - before;
    before = at;
    return took;
  });
}

function print(cold: Line[], warm: Line[]): void {
  const seconds = (value: number) => value.toFixed(1);
  const [fromNothing, again] = [split(cold), split(warm)];
  console.log('| `make up`, in seconds | from nothing | again |\n| --- | ---: | ---: |');
  for (const [at, [name]] of phases.entries()) {
    console.log(`| ${name} | ${seconds(fromNothing[at] ?? 0)} | ${seconds(again[at] ?? 0)} |`);
  }
  const [coldS, warmS] = [cold, warm].map((lines) => Number(seconds(lines.at(-1)?.at ?? 0)));
  console.log(`| together, until the payment test has passed | ${coldS} | ${warmS} |`);
  const [begin, end] = postgres.map((pattern) => last(cold, pattern) ?? 0);
  console.log(`| beside the images: Secrets and Postgres | ${seconds((end ?? 0) - (begin ?? 0))} | |`);
  console.log(JSON.stringify({ coldS, warmS, cores: cpus().length, load: loadavg().map(seconds) }));
}

async function main(): Promise<void> {
  await installUnsuitable(['kind', 'ctlptl'], process.env);
  const clusters = execFileSync('kind', ['get', 'clusters'], { encoding: 'utf8' }).split('\n');
  if (clusters.some((name) => `${name}-control-plane` === nodeContainer)) {
    say('make bench-start measures a start without a cluster. Remove yours, with its data: `make down`.');
    process.exit(1);
  }
  const folder = await copyProject();
  try {
    await avoidCaches(folder);
    say('from nothing');
    const cold = await start(folder);
    say('again');
    print(cold, await start(folder));
  } finally {
    execFileSync(join(root, 'scripts/down.sh'), { stdio: ['ignore', 'ignore', 'inherit'] });
    await rm(folder, { recursive: true });
  }
}

await main();
