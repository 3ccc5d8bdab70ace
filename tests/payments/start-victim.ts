import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { untilReady } from '../support/start-service.ts';

/**
 * Starts a service as a process to kill (see victim.ts), and waits until it is ready.
 * @param env variables besides those of every such process
 */
export async function startVictim(
  service: string,
  env: Record<string, string>,
): Promise<{ child: ChildProcess; port: number }> {
  const child = fork(join(import.meta.dirname, 'victim.ts'), [service], {
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    serialization: 'advanced',
    execArgv: [],
    env: {
      PATH: process.env.PATH,
      HOST: '127.0.0.1',
      PORT: '0',
      METRICS_PORT: '0',
      LOG_LEVEL: 'silent',
      ...env,
    },
  });
  const [{ port }] = (await once(child, 'message')) as [{ port: number }];
  await untilReady(`http://127.0.0.1:${port}`);
  return { child, port };
}
