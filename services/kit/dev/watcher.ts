import { fork } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';

const nodemon = join(
  dirname(createRequire(import.meta.url).resolve('nodemon/package.json')),
  'bin/nodemon.js',
);

/** How long nodemon waits for more files of the same save, in milliseconds. Tilt copies them in one go. */
const delay = 4;

export interface Watcher {
  stop(): void;
}

/**
 * Watches the sources of a service and of the kit with nodemon, which tells a parent that forked it of each
 * change over IPC, https://github.com/remy/nodemon/blob/main/doc/requireable.md. What nodemon itself would run
 * is nothing: ending a process before the next one starts is what this folder is there to avoid.
 * @param onChange gets the files that changed, relative to the root
 * @param onEnd is told how nodemon ended, where nobody asked it to
 */
export function watch(
  root: string,
  service: string,
  { onChange, onEnd }: { onChange: (files: string[]) => void; onEnd: (how: string) => void },
): Watcher {
  const folders = ['services/kit/src', `services/${service}/src`];
  const options = ['--quiet', '--no-stdin', '--on-change-only', '--ext', 'ts', '--ignore', '*.test.ts'];
  const watched = folders.flatMap((folder) => ['--watch', folder]);
  const args = [...options, '--delay', `${delay}ms`, ...watched, '--exec', ':'];
  const child = fork(nodemon, args, {
    cwd: root,
    execArgv: [],
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  });
  child.on('message', (event: { type: string; data?: string[] }) => {
    if (event.type === 'restart') onChange((event.data ?? []).map((file) => relative(root, file)));
  });
  child.on('exit', (code, signal) => onEnd(signal ?? `exit code ${code}`));
  return {
    stop() {
      child.removeAllListeners('exit');
      child.kill();
    },
  };
}
