import { setTimeout as sleep } from 'node:timers/promises';
import { HttpError } from '@payloop/chassis/http-error.ts';
import type { Service } from '@payloop/chassis/run.ts';
import type { Step } from '@payloop/chassis/step.ts';

/** What is to happen at a step, told to a running process. */
export interface Order {
  step: string;
  when: 'before' | 'after';
  /** `kill` ends the process there, once; `fail` makes the step fail, as often as `count` says; `reject` with 429. */
  what: 'kill' | 'fail' | 'reject';
  /** Which time the step comes it is killed, or how often it fails. */
  count: number;
}

/** How long recovery and heartbeats pause here, in milliseconds: the sweep waits for them often. */
const pause = 25;
const pauses = new Set(['pause', 'heartbeat']);

// A service as a process of its own, that dies where it is told to: `node victim.ts invoice-app`.
let orders: Order[] = [];
process.on('message', (given: Order[]) => {
  orders = given;
  process.send?.('armed');
});
// Nobody is left to end it.
process.on('disconnect', () => process.exit());

function carryOut(name: string, when: Order['when']): Promise<void> | undefined {
  const order = orders.find((each) => each.step === name && each.when === when && each.count > 0);
  if (order === undefined) return undefined;
  order.count -= 1;
  if (order.what === 'fail') return Promise.reject(new Error(`failed on purpose ${when} '${name}'`));
  if (order.what === 'reject') return Promise.reject(new HttpError(429, 'too many, on purpose'));
  if (order.count > 0) return undefined;
  process.kill(process.pid, 'SIGKILL');
  return new Promise(() => {});
}

const step: Step = async (name, work) => {
  await carryOut(name, 'before');
  const result = await (pauses.has(name) ? sleep<never>(pause) : work());
  await carryOut(name, 'after');
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
