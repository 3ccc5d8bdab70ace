// `make ci-service`: runs the pipeline with the prod overlay, in a copy of this tree that has one more service. The
// pipeline creates a cluster for that and deletes it.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { signal } from '../../local/processes.ts';
import { nodeContainer } from '../cluster/cluster.ts';
import { withoutMake } from '../support/make.ts';
import { copyTree, removeTree } from '../support/tree.ts';

/** The time limit for `make ci`, in milliseconds. After it, make ci is interrupted and still deletes its cluster. */
const ciTimeout = 15 * 60_000;

class Refusal extends Error {}

function hasCluster(): boolean {
  const args = ['ps', '--all', '--quiet', `--filter=name=^${nodeContainer}$`];
  return execFileSync('docker', args, { encoding: 'utf8' }) !== '';
}

const env = withoutMake(process.env, ['TESTS']);

async function runCi(copy: string): Promise<void> {
  const make = spawn('make', ['ci', 'OVERLAY=prod'], {
    cwd: copy,
    env,
    detached: true,
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  // Signals the whole process group, as Ctrl-C does.
  const interrupt = () => signal(-make.pid!, 'SIGINT');
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, interrupt);
  let isLate = false;
  const timer = setTimeout(() => {
    isLate = true;
    interrupt();
  }, ciTimeout);
  const [code] = await once(make, 'close');
  clearTimeout(timer);
  if (isLate) throw new Refusal(`make ci did not finish within ${ciTimeout / 60_000} minutes`);
  if (code !== 0) throw new Refusal(`make ci failed with exit code ${code}, see above`);
  if (hasCluster()) throw new Refusal('make ci did not delete its cluster: run make down');
}

async function main(): Promise<void> {
  // An existing cluster would keep the namespace and the database of the new service.
  if (hasCluster()) throw new Refusal('a cluster already exists: run make down first');
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
