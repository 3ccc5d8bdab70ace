// Decides how `make up` runs the services. Prints `cluster` or `local`, then the PATH to run it with. The reason goes
// to standard error, in one line.
import { OverlayError, readOverlay } from './overlay.ts';
import {
  describe,
  findUnsuitable,
  installUnsuitable,
  isOnPath,
  run,
  type Unsuitable,
} from '../scripts/tools.ts';

/** Finds out whether this machine can run a cluster. `decide` calls each function only if its result matters. */
export interface Probe {
  /** Why Docker cannot be used; undefined if it can. */
  docker: () => Promise<string | undefined>;
  /** The tools for a cluster that are missing or have an unsuitable version. */
  unsuitable: () => Promise<Unsuitable[]>;
  /** Installs them. */
  install: () => Promise<void>;
}

export interface Decision {
  mode: 'cluster' | 'local';
  /** The mode, why it was chosen, and how to get the other one, in one line. */
  line: string;
}

/** An error with a message for the user, printed without a stack. */
export class ModeError extends Error {}

/**
 * @param asked MODE, if the user set it
 * @param overlay the requested overlay, if local processes cannot run it
 */
export async function decide(asked: string | undefined, probe: Probe, overlay?: string): Promise<Decision> {
  if (asked === 'local') {
    return {
      mode: 'local',
      line: 'local processes, because MODE=local is set (MODE=cluster for the cluster)',
    };
  }
  if (asked && asked !== 'cluster') throw new ModeError(`MODE must be cluster or local, not '${asked}'`);
  const obstacle = await findObstacle(probe);
  if (obstacle === undefined) {
    const why = asked ? 'because MODE=cluster is set' : 'because Docker and the tools are available';
    return { mode: 'cluster', line: `cluster, ${why} (MODE=local for local processes)` };
  }
  if (overlay !== undefined) throw new ModeError(`the overlay ${overlay} needs a cluster, but ${obstacle}`);
  if (asked)
    throw new ModeError(`MODE=cluster is not possible: ${obstacle} (MODE=local for local processes)`);
  return {
    mode: 'local',
    line: `local processes, because ${obstacle} (MODE=cluster to require the cluster)`,
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

/** The tools that `make up` or Tilt runs; mise.toml has their versions. */
const tools = ['ctlptl', 'kind', 'kubectl', 'kustomize', 'tilt'];

/**
 * Probes this machine. `install` adds the folders of the installed tools to the PATH of `env`.
 * @param dockerMs how long Docker may take to answer; a Docker Desktop that is still starting may never answer
 */
export function createProbe(env: NodeJS.ProcessEnv, dockerMs = 10_000): Probe {
  return {
    async docker() {
      if (!(await isOnPath('docker', env))) return 'there is no docker command';
      const ask = (...args: string[]) => run('docker', args, env, dockerMs);
      const context = await ask('context', 'inspect', '--format', '{{.Endpoints.docker.Host}}');
      const host = context.code === 0 ? lastLine(context.output) : env.DOCKER_HOST;
      if (host && !isThisMachine(host))
        return `Docker is on another machine (${host}), so its ports are not on localhost`;
      const { code, output } = await ask('version', '--format', '{{json .}}');
      if (code === undefined) return `Docker did not answer within ${dockerMs / 1000} s`;
      if (code !== 0) return `Docker cannot be reached (${lastLine(output)})`;
      const engine = engineOf(output);
      if (engine === 'Engine') return undefined;
      return `the docker command is not Docker but ${engine ?? lastLine((await ask('--version')).output)}`;
    },
    unsuitable: () => findUnsuitable(tools, env),
    install: () => installUnsuitable(tools, env),
  };
}

function lastLine(output: string): string {
  return output.trim().split('\n').at(-1) ?? '';
}

/** Whether the ports that kind maps are on localhost. */
function isThisMachine(host: string): boolean {
  return /^(unix|npipe|fd):|^tcp:\/\/(localhost|127\.[\d.]+|\[::1\])(:|$)/.test(host);
}

/** The name of the server's first component: `Engine` for Docker. Undefined for podman's command: it has no server. */
function engineOf(output: string): string | undefined {
  const json = output.split('\n').find((line) => line.startsWith('{')) ?? '{}';
  const { Server }: { Server?: { Components?: { Name: string }[] } | null } = JSON.parse(json);
  return Server?.Components?.[0]?.Name;
}

/** The overlay in the arguments, if local processes cannot run it. */
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
