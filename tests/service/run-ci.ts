// `make ci-service`: what the pipeline runs with the prod overlay, in a copy of this tree that has one service more. It
// makes a cluster for that and leaves none.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { signal } from '../../local/processes.ts';
import { nodeContainer } from '../cluster/cluster.ts';
import { withoutMake } from '../support/make.ts';
import { copyTree, removeTree } from '../support/tree.ts';

/** How long `make ci` may take, in milliseconds; then it is interrupted, and still tears its cluster down. */
const ciTimeout = 15 * 60_000;

class Refusal extends Error {}

function hasCluster(): boolean {
  const args = ['ps', '--all', '--quiet', `--filter=name=^${nodeContainer}$`];
  return execFileSync('docker', args, { encoding: 'utf8' }) !== '';
}

const env = withoutMake(process.env, ['PROVE']);

async function runCi(copy: string): Promise<void> {
  const make = spawn('make', ['ci', 'OVERLAY=prod'], {
    cwd: copy,
    env,
    detached: true,
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  // The whole group, as Ctrl-C does.
  const interrupt = () => signal(-make.pid!, 'SIGINT');
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, interrupt);
  let isLate = false;
  const timer = setTimeout(() => {
    isLate = true;
    interrupt();
  }, ciTimeout);
  const [code] = await once(make, 'close');
  clearTimeout(timer);
  if (isLate) throw new Refusal(`make ci was not done after ${ciTimeout / 60_000} minutes`);
  if (code !== 0) throw new Refusal(`make ci failed with exit code ${code}, see above`);
  if (hasCluster()) throw new Refusal('make ci has left its cluster');
}

async function main(): Promise<void> {
  // It would keep the namespace and the database of the new service.
  if (hasCluster()) throw new Refusal('there is a cluster already: run make down first');
  const copy = await copyTree();
  try {
    execFileSync('make', ['service', 'NAME=refunds', 'PORT=8083'], {
      cwd: copy,
      env,
      stdio: ['ignore', 'inherit', 'inherit'],
    });
    await runCi(copy);
  } finally {
    await removeTree(copy);
  }
}

try {
  await main();
} catch (error) {
  const reason = error instanceof Refusal ? error.message : String(error);
  console.error(`ci-service: ${reason}`);
  process.exitCode = 1;
}
