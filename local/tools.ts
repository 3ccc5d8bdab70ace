// Finds the tools of mise.toml and installs those that are missing: `tools.ts NAME…` prints the PATH to run them with.
import { spawn } from 'node:child_process';
import { access, constants } from 'node:fs/promises';
import path from 'node:path';

const installMs = 300_000;
const miseVersion = '2026.9.15';

/** Installs those that are missing with mise, which itself comes from npm; then `env.PATH` reaches them. */
export async function installMissing(tools: string[], env: NodeJS.ProcessEnv): Promise<void> {
  const missing = await findMissing(tools, env);
  if (missing.length === 0) return;
  const mise = `@jdxcode/mise-${process.platform}-${process.arch}@${miseVersion}`;
  // Without a network there is an answer at once: npm would try again for minutes.
  const quick = ['--loglevel=error', '--prefer-offline', '--fetch-retries=0'];
  const exec = ['exec', '--yes', ...quick, `--package=${mise}`, '--', 'mise'];
  // The project's own mise.toml; mise would ask whether to trust it.
  const trusting = { ...env, MISE_TRUSTED_CONFIG_PATHS: process.cwd(), MISE_YES: '1' };
  process.stderr.write(`make: installing ${missing.join(', ')} with mise ${miseVersion}\n`);
  const { output } = await run('npm', [...exec, 'install'], trusting, installMs);
  const paths = await run('npm', [...exec, 'bin-paths'], trusting, installMs);
  // Between the paths are its warnings.
  const folders = paths.output.split('\n').filter((line) => path.isAbsolute(line));
  env.PATH = [env.PATH, ...folders].join(path.delimiter);
  if ((await findMissing(missing, env)).length > 0) process.stderr.write(output);
}

/** Which of the tools are not on the PATH. */
export async function findMissing(tools: string[], env: NodeJS.ProcessEnv): Promise<string[]> {
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
export function run(
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
  await installMissing(process.argv.slice(2), env);
  process.stdout.write(`${env.PATH}\n`);
}
