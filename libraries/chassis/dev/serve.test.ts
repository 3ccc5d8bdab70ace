// Runs the real serve.ts with a small service that reports its code, while its files change in many ways.
// @module-tag slow
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { freePort } from '../../../local/ports.ts';
import { processOf } from '../../../local/processes.ts';
import { hashSource } from '../src/source.ts';

const original = resolve(import.meta.dirname, '../../..');

/** Like the services, it computes the hash of its sources before it loads them. */
const main = `
import { createServer } from 'node:http';
import { resolve } from 'node:path';
import { hashSource } from '../../../libraries/chassis/src/source.ts';
const source = hashSource(resolve(import.meta.dirname, '../../..'), 'toy');
const { word } = await import('./word.ts');
if (typeof word !== 'string') throw new Error('word.ts exports no word');
const server = createServer((request, response) => response.end(JSON.stringify({ word, source })));
const metrics = createServer((request, response) => response.end(word));
const portOf = (server) => server.address().port;
metrics.listen(0, '127.0.0.1', () => server.listen(0, '127.0.0.1', () => {
  process.send?.({ port: portOf(server), metricsPort: portOf(metrics) });
  process.send?.({ ready: true });
}));
process.on('SIGTERM', () => process.exit());
`;
const wordOf = (word: string | number) => `export const word: string = '${word}';\n`;

/** How long a save may take on a busy machine, in milliseconds. On an idle one it takes less than two seconds. */
const bound = 20_000;

// Each test starts processes and waits for polls that run once a second.
vi.setConfig({ testTimeout: 60_000 });

let toy: Toy | undefined;
afterEach(async () => {
  await toy?.[Symbol.asyncDispose]();
  toy = undefined;
});

class Toy {
  readonly base: string;
  readonly root: string;
  readonly src: string;
  log = '';
  #port = 0;
  #child: ChildProcess | undefined;

  /** @param name the folder of the clone, in a temporary folder */
  constructor(name = 'clone') {
    this.base = fs.realpathSync(fs.mkdtempSync(join(tmpdir(), 'payloop-serve-')));
    this.root = join(this.base, name);
    this.src = join(this.root, 'services/toy/src');
    fs.mkdirSync(this.src, { recursive: true });
    for (const path of [
      'libraries/chassis/package.json',
      'libraries/chassis/src/source.ts',
      'libraries/chassis/dev',
    ]) {
      const filter = (file: string) => !file.endsWith('.test.ts');
      fs.cpSync(join(original, path), join(this.root, path), { recursive: true, filter });
    }
    fs.writeFileSync(join(this.root, 'services/toy/package.json'), '{"type":"module","dependencies":{}}');
    fs.symlinkSync(join(original, 'node_modules'), join(this.root, 'node_modules'));
    this.write('main.ts', main);
    this.write('word.ts', wordOf('first'));
  }

  /** @param wrap a command that runs the service, such as `nice` */
  async start(wrap: string[] = [], more: NodeJS.ProcessEnv = {}): Promise<this> {
    this.#port = await freePort();
    const [file, ...args] = [...wrap, process.execPath, 'libraries/chassis/dev/serve.ts', 'toy'];
    const env = {
      ...process.env,
      METRICS_PORT: '0',
      ...more,
      HOST: '127.0.0.1',
      PORT: String(this.#port),
      DATABASE_URL: 'postgres://127.0.0.1:1/',
    };
    this.#child = spawn(file, args, { cwd: this.root, env, stdio: ['ignore', 'pipe', 'pipe'] });
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => (this.log += text));
    }
    await this.serves();
    return this;
  }

  write(path: string, content: string): void {
    fs.mkdirSync(dirname(join(this.src, path)), { recursive: true });
    fs.writeFileSync(join(this.src, path), content);
  }

  /** Returns the current answer, or an empty object. */
  async ask(): Promise<{ word?: string; source?: string }> {
    try {
      return (await (await fetch(`http://127.0.0.1:${this.#port}`)).json()) as object;
    } catch {
      return {};
    }
  }

  /** Waits until the service runs the code in the folder. */
  async serves(): Promise<void> {
    const { word } = /'(?<word>.*)'/.exec(fs.readFileSync(join(this.src, 'word.ts'), 'utf8'))?.groups ?? {};
    await this.#until(async () => {
      const answer = await this.ask();
      return answer.word === word && answer.source === this.hash();
    }, `'${word}' is not served`);
  }

  /** Waits for a log line. @param from the position in the log to start at */
  async says(line: RegExp, from = 0): Promise<void> {
    await this.#until(() => line.test(this.log.slice(from)), `no line like ${line}`);
  }

  /** Computes the hash with test.sh, and checks that source.ts computes the same. */
  hash(): string {
    const script = `eval "$(sed -n '/sha256sum/p;/^hash_source()/,/^}/p' "$0")"; hash_source toy`;
    const options = { cwd: this.root, encoding: 'utf8' } as const;
    const hash = execFileSync('bash', ['-c', script, join(original, 'test.sh')], options).trim();
    if (hashSource(this.root, 'toy') !== hash) throw new Error('source.ts and test.sh differ');
    return hash;
  }

  async #until(isSo: () => boolean | Promise<boolean>, problem: string): Promise<void> {
    for (const end = performance.now() + bound; !(await isSo()); await sleep(20)) {
      if (performance.now() > end) throw new Error(`${problem} within ${bound / 1_000} s:\n${this.log}`);
    }
  }

  /** Waits for nodemon and returns its pid. @param not the pid of one that was killed */
  async nodemon(not?: number): Promise<number> {
    for (;;) {
      for (const pid of fs.readdirSync('/proc').filter((each) => /^\d+$/.test(each))) {
        const found = await processOf(Number(pid));
        if (Number(pid) === not || found?.parent !== this.#child?.pid) continue;
        if (found?.command.includes('nodemon')) return Number(pid);
      }
      await sleep(20);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const child = this.#child;
    if (child && child.exitCode === null && child.signalCode === null) {
      child.kill();
      await once(child, 'exit');
    }
    fs.rmSync(this.base, { recursive: true, force: true });
  }
}

function git(...args: string[]): void {
  const settings = ['user.name=a', 'user.email=a@b', 'core.hooksPath=/dev/null', 'commit.gpgSign=false'];
  const options = settings.flatMap((setting) => ['-c', setting]);
  execFileSync('git', [...options, ...args], { cwd: toy!.root, stdio: 'pipe' });
}

test('serves metrics on one port across saves, and starts even if that port is in use', async () => {
  const other = createServer().listen(0, '127.0.0.1');
  await once(other, 'listening');
  const { port } = other.address() as AddressInfo;
  toy = await new Toy().start([], { METRICS_PORT: `${port}` });
  other.close();
  const scrape = () => fetch(`http://127.0.0.1:${port}/metrics`).then((response) => response.text());
  await expect.poll(() => scrape().catch(() => ''), { timeout: bound }).toBe('first');
  toy.write('word.ts', wordOf('second'));
  await toy.serves();
  expect(await scrape()).toBe('second');
});

/**
 * Saves until nodemon reports a save. The log then names the file, which a poll does not know. The first saves may come
 * before nodemon watches. If nodemon is blind, a poll finds the first save, and nodemon is restarted.
 */
async function isReported(): Promise<boolean> {
  for (let attempt = 1; attempt <= 15; attempt += 1) {
    const from = toy!.log.length;
    toy!.write('word.ts', wordOf(`${from}`));
    await toy!.serves();
    if (/runs the new code after \d+ ms: services\/toy\/src\/word\.ts/.test(toy!.log.slice(from)))
      return true;
    await sleep(500);
  }
  throw new Error(`nodemon reports no save:\n${toy!.log}`);
}

describe('nodemon reports each save', () => {
  test.each([
    'coverage/clone',
    '.git/clone',
    'feature%2Fpay',
    '100%',
    'C#',
    `don't "say"`,
    'a b',
    '$HOME',
    'clone?',
    'naïve',
  ])('in a clone at %s', async (name) => {
    toy = await new Toy(name).start();
    expect(await isReported()).toBe(true);
  });

  test.each([
    ['an Emacs lock', () => fs.symlinkSync('me@host.1234:5678', join(toy!.src, '.#word.ts'))],
    ['a link to nothing', () => fs.symlinkSync('nowhere', join(toy!.src, 'gone.ts'))],
    ['a resource fork', () => toy!.write('._word.ts', '\0\0')],
    ['a folder x.ts/', () => fs.mkdirSync(join(toy!.src, 'x.ts'))],
    ['a folder coverage/', () => toy!.write('coverage/covered.ts', '1;')],
    ['a pipe', () => execFileSync('mkfifo', [join(toy!.src, 'pipe.ts')])],
    ['names with blanks and quotes', () => toy!.write(`don't "copy" 100%#.ts`, '1;')],
  ])('beside %s, created before the start or later', async (_name, make) => {
    toy = new Toy();
    make();
    await toy.start();
    expect(await isReported()).toBe(true);
    fs.rmSync(toy.src, { recursive: true });
    toy.write('main.ts', main);
    toy.write('word.ts', wordOf('third'));
    make();
    await toy.serves();
    toy.write('word.ts', wordOf('fourth'));
    await toy.serves();
  });
});

test('reports nothing for a half-written file, and the error for a mistake', async () => {
  toy = await new Toy().start();
  // Waits for the standby process, which then loads the half-written file at once.
  await sleep(2_000);
  for (const half of ['', 'export const word: str', `export const word: string = 'sec`]) {
    toy.write('word.ts', half);
    await sleep(200);
  }
  toy.write('word.ts', wordOf('second'));
  await toy.serves();
  expect(toy.log).not.toMatch(/Error|did not start/);
  toy.write('word.ts', 'const = 1;');
  await toy.says(/SyntaxError[^]*toy did not start/);
});

test.each(['{"ignoreRoot":["**/*.ts"]}', '{"watchOptions":{"ignored":"**"}}', 'broken'])(
  "reports a save despite the user's nodemon.json: %s",
  async (settings) => {
    toy = new Toy();
    fs.writeFileSync(join(toy.base, 'nodemon.json'), settings);
    await toy.start([], { HOME: toy.base });
    expect(await isReported()).toBe(true);
  },
);

test('finds saves by polling in a clone with a name that nodemon takes for a pattern', async () => {
  toy = await new Toy('[x] {a,b} *').start();
  for (const word of ['second', 'third']) {
    await sleep(3_500);
    toy.write('word.ts', wordOf(word));
    await toy.serves();
  }
  expect(toy.log).toMatch(/runs the new code after \d+ ms\n$/);
});

describe('nodemon is restarted', () => {
  const away = () => join(toy!.base, 'away');
  test.each<[string, (pause: number) => Promise<void> | void]>([
    [
      'the folder was moved away and back',
      async (pause) => {
        fs.renameSync(toy!.src, away());
        await sleep(pause);
        fs.renameSync(away(), toy!.src);
      },
    ],
    [
      'the folder was removed and copied back',
      async (pause) => {
        fs.cpSync(toy!.src, away(), { recursive: true });
        fs.rmSync(toy!.src, { recursive: true });
        await sleep(pause);
        fs.cpSync(away(), toy!.src, { recursive: true });
      },
    ],
    [
      'a commit without the folder was checked out, and then the previous one',
      async (pause) => {
        if (!fs.existsSync(join(toy!.root, '.git'))) {
          git('init', '--quiet', '--initial-branch=main');
          git('add', 'services/toy/package.json');
          git('commit', '--quiet', '--message=without');
          git('tag', 'without');
        }
        git('add', 'services/toy/src');
        git('commit', '--quiet', '--message=with');
        git('checkout', '--quiet', 'without');
        await sleep(pause);
        git('checkout', '--quiet', 'main');
      },
    ],
  ])('after %s', { timeout: 60_000 }, async (_name, replace) => {
    toy = await new Toy().start();
    for (const pause of [0, 300, 2_000]) {
      await replace(pause);
      fs.rmSync(away(), { recursive: true, force: true });
      expect(await isReported()).toBe(true);
    }
  });

  test('while it cannot watch, which is reported once, and saves are still served', async () => {
    toy = new Toy();
    fs.symlinkSync('round.ts', join(toy.src, 'round.ts'));
    await toy.start();
    await toy.says(
      /nodemon exited \(ELOOP: .*round\.ts'\) and is restarted\. Until it watches, a poll finds/,
    );
    await toy.says(/toy: services\/toy\/src\/round\.ts is a symlink in a loop of symlinks/);
    toy.write('word.ts', wordOf('found'));
    await toy.serves();
    fs.rmSync(join(toy.src, 'round.ts'));
    expect(await isReported()).toBe(true);
    expect(toy.log.split('nodemon exited').length - 1).toBe(1);
  });

  test.runIf(process.platform === 'linux')('after it is killed, which is reported once', async () => {
    toy = await new Toy().start();
    for (const times of [1, 2]) {
      const killed = await toy.nodemon();
      process.kill(killed, 'SIGKILL');
      await toy.says(/toy: nodemon exited \(SIGKILL\) and is restarted\. Until it watches/);
      // Saves nothing before nodemon has restarted by itself: a missed save would restart it too.
      await toy.nodemon(killed);
      toy.write('word.ts', wordOf(`${times} found`));
      await toy.serves();
      expect(await isReported()).toBe(true);
    }
    expect(toy.log.split('nodemon exited').length - 1).toBe(1);
  });
});

/** Runs a script in its own user namespace, which has its own inotify limits. */
const withoutInotify = ['unshare', '--user', '--map-root-user', 'sh', '-c'];
const canLimit = () => {
  try {
    execFileSync(withoutInotify[0]!, [
      ...withoutInotify.slice(1),
      'test -w /proc/sys/user/max_inotify_watches',
    ]);
    return true;
  } catch {
    return false;
  }
};

test.runIf(canLimit()).each([
  ['max_inotify_instances', 'EMFILE', 'max_user_instances'],
  ['max_inotify_watches', 'ENOSPC', 'max_user_watches'],
])(
  'reports once that %s is reached, says how to raise it, and still serves saves',
  async (limit, code, setting) => {
    const script = `echo 0 >/proc/sys/user/${limit}; exec "$@"`;
    toy = await new Toy().start([...withoutInotify, script, 'sh']);
    await toy.says(
      new RegExp(`left \\(${code}\\)\\. On Linux, run sudo sysctl fs\\.inotify\\.${setting}=\\d+ to raise`),
    );
    for (const word of ['second', 'third']) {
      await sleep(3_500);
      toy.write('word.ts', wordOf(word));
      await toy.serves();
    }
    expect(toy.log.split('no file watchers are left').length - 1).toBe(1);
    expect(toy.log).not.toMatch(/EPIPE|\n +at /);
  },
);

/** Actions that leave the folder whole or broken, each in less than a second. */
const actions: Record<string, (n: number) => void | Promise<void>> = {
  save: (n) => toy!.write('word.ts', wordOf(n)),
  'save through a rename': (n) => {
    toy!.write('.word.tmp', wordOf(n));
    fs.renameSync(join(toy!.src, '.word.tmp'), join(toy!.src, 'word.ts'));
  },
  'save in halves': async (n) => {
    const whole = wordOf(n);
    toy!.write('word.ts', whole.slice(0, 1 + (n % (whole.length - 1))));
    await sleep((n * 37) % 300);
    toy!.write('word.ts', whole);
  },
  'save a mistake': (n) => toy!.write('word.ts', `const = ${n};`),
  'remove a file': () => fs.rmSync(join(toy!.src, 'word.ts'), { force: true }),
  'create a file': (n) => toy!.write(oddName(n), `// ${n}`),
  'rename a file': (n) => {
    const from = fs.readdirSync(toy!.src).find((name) => name.startsWith('odd'));
    if (from !== undefined) fs.renameSync(join(toy!.src, from), join(toy!.src, oddName(n)));
  },
  'create a folder': (n) => toy!.write(`folder ${n % 3}/${oddName(n)}`, `// ${n}`),
  'remove a folder': (n) => fs.rmSync(join(toy!.src, `folder ${n % 3}`), { recursive: true, force: true }),
  'link to nothing': (n) => {
    const link = join(toy!.src, n % 2 === 0 ? '.#word.ts' : `gone ${n % 5}.ts`);
    fs.rmSync(link, { force: true });
    fs.symlinkSync('nowhere', link);
  },
  'link to a folder': (n) => {
    const [far, link] = [join(toy!.base, 'far'), join(toy!.src, 'far')];
    fs.mkdirSync(far, { recursive: true });
    fs.writeFileSync(join(far, oddName(n)), `// ${n}`);
    fs.rmSync(link, { force: true });
    fs.symlinkSync(far, link);
  },
  'move the folder away and back': async (n) => {
    const away = join(toy!.base, 'away');
    fs.renameSync(toy!.src, away);
    await sleep((n * 37) % 700);
    fs.renameSync(away, toy!.src);
  },
  'copy the folder over itself': (n) => {
    const copy = join(toy!.base, 'copy');
    fs.cpSync(toy!.src, copy, { recursive: true, verbatimSymlinks: true });
    fs.rmSync(toy!.src, { recursive: true });
    fs.cpSync(copy, toy!.src, { recursive: true, verbatimSymlinks: true });
    fs.rmSync(copy, { recursive: true });
    toy!.write('word.ts', wordOf(n));
  },
  'check out a commit without it, and back': async (n) => {
    git('add', '--all', 'services/toy/src');
    git('commit', '--quiet', '--allow-empty', '--message=with');
    git('checkout', '--quiet', 'without');
    await sleep((n * 37) % 700);
    git('checkout', '--quiet', 'main');
  },
};

function oddName(n: number): string {
  return `odd ${["'", '"', '#', '%41', '$(x)', 'é', '\\', '\n', '[a]', '*'][n % 10]} ${n % 4}.ts`;
}

// FILES_RUNS=100 vitest run libraries/chassis/dev/serve.test.ts -t random
test(
  'after random actions, serves the code in the folder or reports why not',
  { timeout: 3_600_000 },
  async () => {
    const action = fc.tuple(fc.constantFrom(...Object.keys(actions)), fc.nat(999), fc.nat(1_500));
    const property = fc.asyncProperty(fc.array(action, { minLength: 4, maxLength: 8 }), async (list) => {
      await using made = new Toy();
      toy = made;
      git('init', '--quiet', '--initial-branch=main');
      git('commit', '--quiet', '--allow-empty', '--message=without');
      git('tag', 'without');
      await toy.start();
      let reported = '';
      for (const [name, n, pause] of list) {
        const from = toy.log.length;
        await actions[name]!(n);
        const file = join(toy.src, 'word.ts');
        const content = fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : '';
        const isWhole = content.startsWith('export');
        if (isWhole) await toy.serves();
        else if (toy.hash() !== reported) await toy.says(/toy did not start/, from);
        reported = isWhole ? '' : toy.hash();
        await sleep(pause);
      }
      toy.write('word.ts', wordOf('the end'));
      await toy.serves();
      expect(toy.log).not.toMatch(/not a function/);
      toy = undefined;
    });
    await fc.assert(property, { numRuns: Number(process.env.FILES_RUNS ?? 2), endOnFailure: true });
  },
);
