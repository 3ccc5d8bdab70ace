// A thread, which has modules of its own as a process has: runs `main` once it is told to, with or without its modules
// linked ahead, and posts what it exports as `answer`, or its error.
import { once } from 'node:events';
import { parentPort, workerData } from 'node:worker_threads';
import { linkAhead } from '../../libraries/chassis/dev/ahead.ts';

export interface Work {
  main: string;
  /** The URLs of what is linked ahead; undefined for a cold start. */
  ahead?: string[];
  /** Imported first: a test's own hooks. */
  before?: string;
}

export interface Outcome {
  answer?: unknown;
  error?: { name: string; message: string; code?: string; stack: string[] };
  /** What the modules wrote down as they were evaluated. */
  order: unknown[];
}

const { main, ahead, before } = workerData as Work;
const order: unknown[] = [];
Object.assign(globalThis, { order });
if (before) await import(before);
const useLinked = ahead ? await linkAhead(ahead) : () => {};
parentPort!.postMessage({ order: [...order] }, []);
await once(parentPort!, 'message');
useLinked();
const outcome = await import(main).then(
  ({ answer }) => ({ answer: typeof answer === 'function' ? answer() : answer }),
  ({ name, message, code, stack }) => ({ error: { name, message, code, stack: framesOf(stack) } }),
);
parentPort!.postMessage({ ...outcome, order }, []);

/** Without Node's own and those of the hooks. */
function framesOf(stack: string): string[] {
  return stack.split('\n').filter((line) => !/^ +at .*(node:|ahead(-worker)?\.ts)/.test(line));
}
