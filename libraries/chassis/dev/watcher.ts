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
/** How long after its end nodemon is started again, in milliseconds. */
const restartDelay = 1_000;
/** The same where it ended so before, or the system has no watchers left: that takes somebody to change it. */
const longDelay = 10_000;

export interface Watcher {
  /** Starts nodemon anew: it does not see a folder that was replaced. */
  renew(): void;
  stop(): void;
}

export interface WatcherOptions {
  /** What `paths` are relative to. */
  root: string;
  /** Folders, with all that is below, and files. */
  paths: string[];
  /** Gets the files `*.ts` and `*.sh` that changed, relative to the root. */
  onChange: (files: string[]) => void;
  /** Says why nodemon does not watch, once for each reason. */
  say: (text: string) => void;
}

/**
 * Watches folders with nodemon, which tells a parent that forked it of each change over IPC,
 * https://github.com/remy/nodemon/blob/main/doc/requireable.md. What nodemon itself would run is nothing: ending
 * a process before the next one starts is what this folder is there to avoid. Where nodemon ends, or cannot watch,
 * it is started again; meanwhile changes go unnoticed here.
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
  // By itself nodemon ignores every folder coverage, .git and the like, also above the clone: nodemon.json has none.
  const config = ['--config', join(import.meta.dirname, 'nodemon.json'), '--ignore', '*.test.ts'];
  const args = [...options, ...config, '--delay', `${delay}ms`, ...watched, '--exec', ':'];
  // Without HOME it reads no nodemon.json of the user's.
  const env = { ...process.env, HOME: '' };
  const said = new Set<string>();
  let child: ChildProcess | undefined;
  let timer: NodeJS.Timeout | undefined;

  const startLater = (ms: number) => {
    clearTimeout(timer);
    timer = setTimeout(start, ms);
  };
  const start = () => {
    // Without any folder it would watch all that is below the root.
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
    let ended = false;
    const end = (how: string) => {
      if (ended || child !== nodemonProcess) return;
      ended = true;
      const limit = limitOf(output);
      const [, cause = how] = /Internal watch failed: (.*)/.exec(output) ?? [];
      const why = limit ?? `nodemon ended (${cause}) and is started again`;
      if (!said.has(why)) say(`${why}; until it watches, saves are looked for once a second`);
      startLater(limit !== undefined || said.has(why) ? longDelay : restartDelay);
      said.add(why);
    };
    // When its last words have been read.
    nodemonProcess.on('close', (code, signal) => end(signal ?? `exit code ${code}`));
    nodemonProcess.on('error', (error) => end(error.message));
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

/** What to do where the system has no watchers left: inotify's limits are for all processes of a user. */
function limitOf(output: string): string | undefined {
  const [, code] = /\b(ENOSPC|EMFILE)\b/.exec(output) ?? [];
  if (code === undefined) return undefined;
  const setting = code === 'ENOSPC' ? 'max_user_watches=524288' : 'max_user_instances=1024';
  return `the system's limit of file watchers is reached (${code}): on Linux raise it with sudo sysctl fs.inotify.${setting}`;
}
