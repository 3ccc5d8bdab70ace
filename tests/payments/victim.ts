import { setTimeout as sleep } from 'node:timers/promises';
import { HttpError } from '@payloop/chassis/http-error.ts';
import type { Service } from '@payloop/chassis/run.ts';
import type { Step } from '@payloop/chassis/step.ts';

/** A fault to inject at a failpoint, sent to a running process. */
export interface Fault {
  failpoint: string;
  when: 'before' | 'after';
  /** `kill` kills the process once, `fail` throws an error `count` times, `reject` throws a 429 `count` times. */
  action: 'kill' | 'fail' | 'reject';
  /** For `kill`, the pass through the failpoint at which to kill; otherwise, how often to throw. */
  count: number;
}

/** How long recovery and heartbeats pause, in milliseconds. Short, because the sweep waits for them often. */
const pause = 25;
const pauses = new Set(['pause', 'heartbeat']);

// Runs a service as a process that dies where its parent tells it to: `node victim.ts invoice-app`.
let faults: Fault[] = [];
process.on('message', (given: Fault[]) => {
  faults = given;
  process.send?.('armed');
});
// Exits with its parent, because nothing else would stop it.
process.on('disconnect', () => process.exit());

function inject(name: string, when: Fault['when']): Promise<void> | undefined {
  const fault = faults.find((each) => each.failpoint === name && each.when === when && each.count > 0);
  if (fault === undefined) return undefined;
  fault.count -= 1;
  if (fault.action === 'fail') return Promise.reject(new Error(`injected fault ${when} '${name}'`));
  if (fault.action === 'reject') return Promise.reject(new HttpError(429, 'injected: too many requests'));
  if (fault.count > 0) return undefined;
  process.kill(process.pid, 'SIGKILL');
  return new Promise(() => {});
}

const step: Step = async (name, work) => {
  await inject(name, 'before');
  const result = await (pauses.has(name) ? sleep<never>(pause) : work());
  await inject(name, 'after');
  return result;
};

const service: Service = await import(`../../services/${process.argv[2]}/src/service.ts`);
const { port } = await service.start({
  source: '',
  instance: process.env.INSTANCE ?? '',
  env: process.env,
  step,
});
process.send?.({ port });
