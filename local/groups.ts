import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { exists, signal } from './processes.ts';

/** A command and all processes that it starts. Ctrl-C in the terminal does not reach them: we stop them in order. */
export interface Group {
  name: string;
  pid: number;
  /** Resolves with the command's exit code or the signal that killed it, as text. */
  ended: Promise<string>;
}

export interface Command {
  name: string;
  file: string;
  args: string[];
  env: NodeJS.ProcessEnv;
  cwd: string;
}

/** @param onLine receives each line of its output */
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

/** How long a group may take to stop after SIGTERM, in milliseconds: payments in flight finish. */
const politeMs = 8_000;
/** How long a group may take to disappear after SIGKILL, in milliseconds. */
const killedMs = 2_000;

/**
 * Stops every process of a group; returns false if any is left. Kills the group's leader first. It has no state, and it
 * could restart a process that exits after SIGTERM.
 */
export async function stopGroup(pid: number): Promise<boolean> {
  signal(pid, 'SIGKILL');
  signal(-pid, 'SIGTERM');
  if (await hasExited(pid, politeMs)) return true;
  signal(-pid, 'SIGKILL');
  return await hasExited(pid, killedMs);
}

async function hasExited(pid: number, bound: number): Promise<boolean> {
  for (const until = Date.now() + bound; Date.now() < until; await delay(25)) {
    if (!exists(-pid)) return true;
  }
  return !exists(-pid);
}
