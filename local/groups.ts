import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { exists, signal } from './processes.ts';

/** A command with all that it starts, which no terminal's Ctrl-C reaches: it ends in our order. */
export interface Group {
  name: string;
  pid: number;
  /** Resolves with how the command itself ended. */
  ended: Promise<string>;
}

export interface Command {
  name: string;
  file: string;
  args: string[];
  env: NodeJS.ProcessEnv;
  cwd: string;
}

/** @param onLine gets each line of its output */
export async function startGroup(command: Command, onLine: (line: string) => void): Promise<Group> {
  const { name, file, args, env, cwd } = command;
  const child = spawn(file, args, { cwd, env, detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
  for (const stream of [child.stdout, child.stderr]) createInterface({ input: stream }).on('line', onLine);
  const ended = new Promise<string>((resolve) => {
    child.once('exit', (code, by) => resolve(by ?? `exit code ${code}`));
  });
  await new Promise<void>((resolve, reject) => {
    child.once('spawn', resolve).once('error', reject);
  });
  return { name, pid: child.pid!, ended };
}

/** How long a group may take to end by itself, in milliseconds: payments under way get their answer. */
const politeMs = 8_000;
const killedMs = 2_000;

/**
 * Ends every process of a group; false if any is left. A watcher leads it, and has nothing to lose: nodemon, asked to end,
 * would send the test one signal after the other, of which the second ends it at once.
 */
export async function endGroup(pid: number): Promise<boolean> {
  signal(pid, 'SIGKILL');
  signal(-pid, 'SIGTERM');
  if (await isGone(pid, politeMs)) return true;
  signal(-pid, 'SIGKILL');
  return await isGone(pid, killedMs);
}

async function isGone(pid: number, bound: number): Promise<boolean> {
  for (const until = Date.now() + bound; Date.now() < until; await delay(25)) {
    if (!exists(-pid)) return true;
  }
  return !exists(-pid);
}
