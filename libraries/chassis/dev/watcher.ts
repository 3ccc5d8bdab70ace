import { fork, type ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';

const nodemon = join(
  dirname(createRequire(import.meta.url).resolve('nodemon/package.json')),
  'bin/nodemon.js',
);

/** How long nodemon waits for more files of the same save, in milliseconds. Tilt copies them in one go. */
const delay = 4;
/** How long after its exit nodemon is restarted, in milliseconds. */
const restartDelay = 1_000;
/** The same after a repeated failure, or when the system has no watchers left: a user has to fix that. */
const longDelay = 10_000;

export interface Watcher {
  /** Restarts nodemon, which does not see that a folder was replaced. */
  renew(): void;
  stop(): void;
}

export interface WatcherOptions {
  /** The folder that `paths` are relative to. */
  root: string;
  /** Files, and folders with everything below them. */
  paths: string[];
  /** Called with the changed `*.ts` and `*.sh` files, relative to the root. */
  onChange: (files: string[]) => void;
  /** Prints why nodemon does not watch, once for each reason. */
  say: (text: string) => void;
}

/**
 * Watches folders with nodemon, which reports each change over IPC to the parent that forked it,
 * https://github.com/remy/nodemon/blob/main/doc/requireable.md. nodemon runs no program here: it would stop the old
 * process before it starts the new one. If nodemon exits or cannot watch, it is restarted. Changes until then are not
 * reported.
 */
export function watch({ root, paths, onChange, say }: WatcherOptions): Watcher {
  const options = [
    '--no-stdin',
    '--no-colours',
    '--no-update-notifier',
    '--on-change-only',
    '--ext',
    'ts,sh',
  ];
  const watched = paths.flatMap((path) => ['--watch', path]);
  // By default nodemon ignores folders such as coverage and .git, even above the clone. nodemon.json turns that off.
  const config = ['--config', join(import.meta.dirname, 'nodemon.json'), '--ignore', '*.test.ts'];
  const args = [...options, ...config, '--delay', `${delay}ms`, ...watched, '--exec', ':'];
  // An empty HOME keeps nodemon from reading the user's nodemon.json.
  const env = { ...process.env, HOME: '' };
  const reported = new Set<string>();
  let child: ChildProcess | undefined;
  let timer: NodeJS.Timeout | undefined;

  const startLater = (ms: number) => {
    clearTimeout(timer);
    timer = setTimeout(start, ms);
  };
  const start = () => {
    // If no folder existed, nodemon would watch everything below the root.
    if (!paths.every((path) => existsSync(join(root, path)))) return startLater(restartDelay);
    let output = '';
    const nodemonProcess = fork(nodemon, args, {
      cwd: root,
      env,
      execArgv: [],
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    });
    child = nodemonProcess;
    for (const stream of [nodemonProcess.stdout, nodemonProcess.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => (output = (output + text).slice(-4_000)));
    }
    nodemonProcess.on('message', (event: { type: string; data?: string[] }) => {
      if (event.type === 'restart') onChange((event.data ?? []).map((file) => relative(root, file)));
    });
    let hasExited = false;
    const onExit = (how: string) => {
      if (hasExited || child !== nodemonProcess) return;
      hasExited = true;
      const limit = limitOf(output);
      const [, cause = how] = /Internal watch failed: (.*)/.exec(output) ?? [];
      const why = limit ?? `nodemon exited (${cause}) and is restarted`;
      if (!reported.has(why)) say(`${why}. Until it watches, a poll finds changes once a second.`);
      startLater(limit !== undefined || reported.has(why) ? longDelay : restartDelay);
      reported.add(why);
    };
    // Unlike 'exit', 'close' comes after all output has been read.
    nodemonProcess.on('close', (code, signal) => onExit(signal ?? `exit code ${code}`));
    nodemonProcess.on('error', (error) => onExit(error.message));
  };
  const stop = () => {
    clearTimeout(timer);
    const old = child;
    child = undefined;
    old?.kill();
  };
  start();
  return {
    renew() {
      stop();
      start();
    },
    stop,
  };
}

/** The message for a system without watchers left. inotify's limits apply to all processes of a user together. */
function limitOf(output: string): string | undefined {
  const [, code] = /\b(ENOSPC|EMFILE)\b/.exec(output) ?? [];
  if (code === undefined) return undefined;
  const setting = code === 'ENOSPC' ? 'max_user_watches=524288' : 'max_user_instances=1024';
  return `no file watchers are left (${code}). On Linux, run sudo sysctl fs.inotify.${setting} to raise the limit`;
}
