// Finds tools of mise.toml. If one is missing or has an unsuitable version, installs all tools of mise.toml with mise.
// `tools.ts NAME…` prints the PATH to run the named tools with.
import { spawn } from 'node:child_process';
import { access, constants, readFile } from 'node:fs/promises';
import path from 'node:path';

/** How long a command of mise may take: it downloads the tools. */
const installMs = 300_000;
/** How long a tool may take to print its version. */
const versionMs = 10_000;
const miseVersion = '2026.9.15';

/** The arguments that print each tool's version. Not kube-score's: built from source it prints "development". */
const versionArguments: Record<string, string[]> = {
  ctlptl: ['version'],
  kind: ['version'],
  kubectl: ['version', '--client'],
  kustomize: ['version'],
  tilt: ['version'],
};

/** A tool that is missing, or is on the PATH in a version that does not work with the project. */
export interface Unsuitable {
  tool: string;
  /** The version that mise.toml pins. */
  wanted: string;
  /** The version on the PATH, or undefined if the tool is missing. */
  found: string | undefined;
}

/** Returns a text such as `kind 0.33.0 (0.32.0 is on the PATH), tilt 0.37.6`. */
export function describe(tools: Unsuitable[]): string {
  const parts = tools.map(({ tool, wanted, found }) => {
    return `${tool} ${wanted}${found === undefined ? '' : ` (${found} is on the PATH)`}`;
  });
  return parts.join(', ');
}

/**
 * If any of these tools is unsuitable, installs the tools of mise.toml with mise, which itself comes from npm. Puts the
 * unsuitable ones of these tools first on `env.PATH`.
 */
export async function installUnsuitable(tools: string[], env: NodeJS.ProcessEnv): Promise<void> {
  const unsuitable = await findUnsuitable(tools, env);
  if (unsuitable.length === 0) return;
  const mise = `@jdxcode/mise-${process.platform}-${process.arch}@${miseVersion}`;
  // Fails at once if there is no network. By default npm retries for minutes.
  const quick = ['--loglevel=error', '--prefer-offline', '--fetch-retries=0'];
  const exec = ['exec', '--yes', ...quick, `--package=${mise}`, '--', 'mise'];
  // Trusts the project's mise.toml; otherwise mise would prompt.
  const trusting = { ...env, MISE_TRUSTED_CONFIG_PATHS: process.cwd(), MISE_YES: '1' };
  process.stderr.write(`make: installing ${describe(unsuitable)} with mise ${miseVersion}\n`);
  const { output } = await run('npm', [...exec, 'install'], trusting, installMs);
  const pins = await readPins();
  const names = unsuitable.map(({ tool }) => pins.get(tool)!.name);
  const paths = await run('npm', [...exec, 'bin-paths', ...names], trusting, installMs);
  // mise prints warnings between the paths.
  const folders = paths.output.split('\n').filter((line) => path.isAbsolute(line));
  env.PATH = [...folders, env.PATH].join(path.delimiter);
  if ((await findUnsuitable(tools, env)).length > 0) process.stderr.write(output);
}

/** Returns the tools that are missing, or are on the PATH in a version that `isSuitable` rejects. */
export async function findUnsuitable(tools: string[], env: NodeJS.ProcessEnv): Promise<Unsuitable[]> {
  const pins = await readPins();
  const checked = await Promise.all(
    tools.map(async (tool): Promise<Unsuitable | undefined> => {
      const wanted = pins.get(tool)?.version;
      if (wanted === undefined) throw new Error(`mise.toml has no version of ${tool}`);
      if (!(await isOnPath(tool, env))) return { tool, wanted, found: undefined };
      const args = versionArguments[tool];
      if (args === undefined) return undefined;
      const { output } = await run(tool, args, env, versionMs);
      const found = /\d+\.\d+\.\d+/.exec(output)?.[0];
      if (found !== undefined && isSuitable(tool, found, wanted)) return undefined;
      return { tool, wanted, found: found ?? 'an unknown version' };
    }),
  );
  return checked.filter((each) => each !== undefined);
}

/**
 * Whether the project works with a version: it has the same major version, and is not older than the pinned one.
 * kubectl works with servers up to one minor version away
 * (https://kubernetes.io/releases/version-skew-policy/#kubectl).
 */
export function isSuitable(tool: string, found: string, wanted: string): boolean {
  const [major = 0, minor = 0, patch = 0] = found.split('.').map(Number);
  const [wantedMajor = 0, wantedMinor = 0, wantedPatch = 0] = wanted.split('.').map(Number);
  if (major !== wantedMajor) return false;
  if (tool === 'kubectl') return Math.abs(minor - wantedMinor) <= 1;
  return minor > wantedMinor || (minor === wantedMinor && patch >= wantedPatch);
}

/** Returns each tool's version and name in mise.toml, by its command. */
async function readPins(): Promise<Map<string, { name: string; version: string }>> {
  const text = await readFile(path.join(import.meta.dirname, '../mise.toml'), 'utf8');
  const lines = text.matchAll(/^"?([^"\s#[]+)"? = "([\d.]+)"$/gm);
  return new Map(
    [...lines].map(([, name = '', version = '']) => [path.posix.basename(name), { name, version }]),
  );
}

/** Whether a command is in a folder of `env.PATH`. */
export async function isOnPath(command: string, env: NodeJS.ProcessEnv): Promise<boolean> {
  for (const folder of (env.PATH ?? '').split(path.delimiter)) {
    try {
      await access(path.join(folder, command), constants.X_OK);
      return true;
    } catch {
      // Not in this folder.
    }
  }
  return false;
}

/**
 * Runs a command. The exit code is undefined if the command took longer than `bound` milliseconds and was killed, with
 * all that it started; null if it did not start or was killed by a signal.
 */
export function run(
  command: string,
  args: string[],
  env: NodeJS.ProcessEnv,
  bound: number,
): Promise<{ code: number | null | undefined; output: string }> {
  return new Promise((resolve) => {
    let output = '';
    const child = spawn(command, args, { env, detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
    const finish = (code: number | null | undefined) => {
      clearTimeout(timer);
      for (const stream of [child.stdout, child.stderr]) stream.destroy();
      resolve({ code, output });
    };
    const timer = setTimeout(() => {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
      finish(undefined);
    }, bound);
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text: string) => (output += text));
    }
    child.once('error', (error) => {
      output = error.message;
      finish(null);
    });
    child.once('close', (code) => finish(code));
  });
}

if (process.argv[1] === import.meta.filename) {
  const env = { ...process.env };
  const tools = process.argv.slice(2);
  await installUnsuitable(tools, env);
  const left = await findUnsuitable(tools, env);
  if (left.length > 0) {
    process.stderr.write(
      `make: mise could not install ${describe(left)}: put it on the PATH, see mise.toml\n`,
    );
    process.exit(1);
  }
  process.stdout.write(`${env.PATH}\n`);
}
