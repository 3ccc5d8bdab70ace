// Decides how `make up` runs the services: prints `cluster` or `local`, and the PATH to run it with.
// Why it took that one goes to standard error, in one line.
import { spawn } from 'node:child_process';
import { access, constants } from 'node:fs/promises';
import path from 'node:path';

/** What tells whether a cluster can be had; each is asked only if it matters. */
export interface Probe {
  /** Why Docker cannot be used; undefined if it can. */
  docker: () => Promise<string | undefined>;
  /** Which of the tools that a cluster needs are not there. */
  missing: () => Promise<string[]>;
  /** Installs the missing ones. */
  install: () => Promise<void>;
}

export interface Decision {
  mode: 'cluster' | 'local';
  /** One line: what it took, why, and how to ask for the other. */
  line: string;
}

/** Thrown with a message that is meant for the user as it is. */
export class ModeError extends Error {}

/** @param asked MODE, where the user set it */
export async function decide(asked: string | undefined, probe: Probe): Promise<Decision> {
  if (asked === 'local') {
    return { mode: 'local', line: 'local processes, as MODE=local asks (MODE=cluster for the cluster)' };
  }
  if (asked && asked !== 'cluster') throw new ModeError(`MODE must be cluster or local, not '${asked}'`);
  const obstacle = await findObstacle(probe);
  if (obstacle === undefined) {
    const why = asked ? 'as MODE=cluster asks' : 'because Docker and the tools are there';
    return { mode: 'cluster', line: `cluster, ${why} (MODE=local for local processes)` };
  }
  if (asked)
    throw new ModeError(`MODE=cluster is not possible: ${obstacle} (MODE=local for local processes)`);
  return {
    mode: 'local',
    line: `local processes, because ${obstacle} (MODE=cluster insists on the cluster)`,
  };
}

async function findObstacle({ docker, missing, install }: Probe): Promise<string | undefined> {
  const noDocker = await docker();
  if (noDocker !== undefined) return noDocker;
  if ((await missing()).length === 0) return undefined;
  await install();
  const stillMissing = await missing();
  if (stillMissing.length === 0) return undefined;
  return `mise could not install what is missing: ${stillMissing.join(', ')}`;
}

/** What `make up` calls or Tilt does for it; mise.toml has their versions. */
const tools = ['ctlptl', 'kind', 'kubectl', 'kustomize', 'tilt'];

const installMs = 300_000;
const miseVersion = '2026.9.15';

/**
 * Asks the machine. A PATH that reaches what mise installed is found in `env` afterwards.
 * @param dockerMs how long Docker may take to answer; a Docker Desktop that is only starting may never do
 */
export function createProbe(env: NodeJS.ProcessEnv, dockerMs = 10_000): Probe {
  return {
    async docker() {
      if (!(await isOnPath('docker', env))) return 'there is no docker command';
      const { code, output } = await run(
        'docker',
        ['version', '--format', '{{.Server.Version}}'],
        env,
        dockerMs,
      );
      if (code === 0) return undefined;
      if (code === undefined) return `Docker did not answer within ${dockerMs / 1000} s`;
      return `Docker cannot be reached (${output.trim().split('\n').at(-1)})`;
    },
    missing: () => findMissing(env),
    async install() {
      const mise = `@jdxcode/mise-${process.platform}-${process.arch}@${miseVersion}`;
      // Without a network there is an answer at once: npm would try again for minutes.
      const quick = ['--loglevel=error', '--prefer-offline', '--fetch-retries=0'];
      const exec = ['exec', '--yes', ...quick, `--package=${mise}`, '--', 'mise'];
      // The project's own mise.toml; mise would ask whether to trust it.
      const trusting = { ...env, MISE_TRUSTED_CONFIG_PATHS: process.cwd(), MISE_YES: '1' };
      const missing = await findMissing(env);
      process.stderr.write(`make up: installing ${missing.join(', ')} with mise ${miseVersion}\n`);
      const { output } = await run('npm', [...exec, 'install'], trusting, installMs);
      const paths = await run('npm', [...exec, 'bin-paths'], trusting, installMs);
      // Between the paths are its warnings.
      const folders = paths.output.split('\n').filter((line) => path.isAbsolute(line));
      env.PATH = [env.PATH, ...folders].join(path.delimiter);
      if ((await findMissing(env)).length > 0) process.stderr.write(output);
    },
  };
}

async function findMissing(env: NodeJS.ProcessEnv): Promise<string[]> {
  const found = await Promise.all(tools.map((tool) => isOnPath(tool, env)));
  return tools.filter((_, index) => !found[index]);
}

async function isOnPath(command: string, env: NodeJS.ProcessEnv): Promise<boolean> {
  for (const folder of (env.PATH ?? '').split(path.delimiter)) {
    try {
      await access(path.join(folder, command), constants.X_OK);
      return true;
    } catch {
      // The next one, then.
    }
  }
  return false;
}

/** Its output and exit code; no code if it took too long and was ended, with all that it started. */
function run(
  command: string,
  args: string[],
  env: NodeJS.ProcessEnv,
  bound: number,
): Promise<{ code: number | null | undefined; output: string }> {
  return new Promise((resolve) => {
    let output = '';
    const child = spawn(command, args, { env, detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
    const answer = (code: number | null | undefined) => {
      clearTimeout(timer);
      for (const stream of [child.stdout, child.stderr]) stream.destroy();
      resolve({ code, output });
    };
    const timer = setTimeout(() => {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
      answer(undefined);
    }, bound);
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text: string) => (output += text));
    }
    child.once('error', (error) => {
      output = error.message;
      answer(null);
    });
    child.once('close', (code) => answer(code));
  });
}

if (process.argv[1] === import.meta.filename) {
  const env = { ...process.env };
  try {
    const { mode, line } = await decide(env.MODE || undefined, createProbe(env));
    process.stderr.write(`make up: ${line}\n`);
    process.stdout.write(`${mode}\n${env.PATH}\n`);
  } catch (error) {
    if (!(error instanceof ModeError)) throw error;
    process.stderr.write(`make up: ${error.message}\n`);
    process.exitCode = 1;
  }
}
