// Decides how `make up` runs the services: prints `cluster` or `local`, and the PATH to run it with.
// Why it took that one goes to standard error, in one line.
import { OverlayError, readOverlay } from './overlay.ts';
import {
  describe,
  findUnsuitable,
  installUnsuitable,
  isOnPath,
  run,
  type Unsuitable,
} from '../scripts/tools.ts';

/** What tells whether a cluster can be had; each is asked only if it matters. */
export interface Probe {
  /** Why Docker cannot be used; undefined if it can. */
  docker: () => Promise<string | undefined>;
  /** Which of the tools that a cluster needs are missing or of an unsuitable version. */
  unsuitable: () => Promise<Unsuitable[]>;
  /** Installs them. */
  install: () => Promise<void>;
}

export interface Decision {
  mode: 'cluster' | 'local';
  /** One line: what it took, why, and how to ask for the other. */
  line: string;
}

/** Thrown with a message that is meant for the user as it is. */
export class ModeError extends Error {}

/**
 * @param asked MODE, where the user set it
 * @param overlay one that local processes cannot have, if the user asks for that
 */
export async function decide(asked: string | undefined, probe: Probe, overlay?: string): Promise<Decision> {
  if (asked === 'local') {
    return { mode: 'local', line: 'local processes, as MODE=local asks (MODE=cluster for the cluster)' };
  }
  if (asked && asked !== 'cluster') throw new ModeError(`MODE must be cluster or local, not '${asked}'`);
  const obstacle = await findObstacle(probe);
  if (obstacle === undefined) {
    const why = asked ? 'as MODE=cluster asks' : 'because Docker and the tools are there';
    return { mode: 'cluster', line: `cluster, ${why} (MODE=local for local processes)` };
  }
  if (overlay !== undefined) throw new ModeError(`the overlay ${overlay} needs a cluster, and ${obstacle}`);
  if (asked)
    throw new ModeError(`MODE=cluster is not possible: ${obstacle} (MODE=local for local processes)`);
  return {
    mode: 'local',
    line: `local processes, because ${obstacle} (MODE=cluster insists on the cluster)`,
  };
}

async function findObstacle({ docker, unsuitable, install }: Probe): Promise<string | undefined> {
  const noDocker = await docker();
  if (noDocker !== undefined) return noDocker;
  if ((await unsuitable()).length === 0) return undefined;
  await install();
  const left = await unsuitable();
  return left.length === 0 ? undefined : `mise could not install ${describe(left)}`;
}

/** What `make up` calls or Tilt does for it; mise.toml has their versions. */
const tools = ['ctlptl', 'kind', 'kubectl', 'kustomize', 'tilt'];

/**
 * Asks the machine. A PATH that reaches what mise installed is found in `env` afterwards.
 * @param dockerMs how long Docker may take to answer; a Docker Desktop that is only starting may never do
 */
export function createProbe(env: NodeJS.ProcessEnv, dockerMs = 10_000): Probe {
  return {
    async docker() {
      if (!(await isOnPath('docker', env))) return 'there is no docker command';
      const ask = (...args: string[]) => run('docker', args, env, dockerMs);
      const context = await ask('context', 'inspect', '--format', '{{.Endpoints.docker.Host}}');
      const host = context.code === 0 ? lastLine(context.output) : env.DOCKER_HOST;
      if (host && !isThisMachine(host))
        return `Docker is on another machine (${host}), and so would be the ports`;
      const { code, output } = await ask('version', '--format', '{{json .}}');
      if (code === undefined) return `Docker did not answer within ${dockerMs / 1000} s`;
      if (code !== 0) return `Docker cannot be reached (${lastLine(output)})`;
      const engine = engineOf(output);
      if (engine === 'Engine') return undefined;
      return `docker is not Docker here but ${engine ?? lastLine((await ask('--version')).output)}`;
    },
    unsuitable: () => findUnsuitable(tools, env),
    install: () => installUnsuitable(tools, env),
  };
}

function lastLine(output: string): string {
  return output.trim().split('\n').at(-1) ?? '';
}

/** Where kind maps ports to: those of another machine are not on localhost. */
function isThisMachine(host: string): boolean {
  return /^(unix|npipe|fd):|^tcp:\/\/(localhost|127\.[\d.]+|\[::1\])(:|$)/.test(host);
}

/** What the server is made of first, `Engine` in Docker's; undefined where there is none, as in podman's own command. */
function engineOf(output: string): string | undefined {
  const json = output.split('\n').find((line) => line.startsWith('{')) ?? '{}';
  const { Server }: { Server?: { Components?: { Name: string }[] } | null } = JSON.parse(json);
  return Server?.Components?.[0]?.Name;
}

/** The overlay that the arguments ask for, where local processes cannot have it. */
function clusterOnly(args: string[]): string | undefined {
  const overlay = args.findLast((each) => each.startsWith('--overlay='))?.slice(10) ?? 'dev';
  try {
    readOverlay(overlay);
    return undefined;
  } catch (error) {
    if (!(error instanceof OverlayError)) throw error;
    return overlay;
  }
}

if (process.argv[1] === import.meta.filename) {
  const env = { ...process.env };
  try {
    const overlay = clusterOnly(process.argv.slice(2));
    const { mode, line } = await decide(env.MODE || undefined, createProbe(env), overlay);
    process.stderr.write(`make up: ${line}\n`);
    process.stdout.write(`${mode}\n${env.PATH}\n`);
  } catch (error) {
    if (!(error instanceof ModeError)) throw error;
    process.stderr.write(`make up: ${error.message}\n`);
    process.exitCode = 1;
  }
}
