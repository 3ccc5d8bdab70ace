// A worker thread, because a thread has its own modules as a process does. On a message it imports `main`, with or
// without modules linked ahead. It posts the export `answer` of `main`, or the error.
import { once } from 'node:events';
import { parentPort, workerData } from 'node:worker_threads';
import { linkAhead } from '../../libraries/chassis/dev/ahead.ts';

export interface Work {
  main: string;
  /** The URLs of the modules to link ahead; undefined for a cold start. */
  ahead?: string[];
  /** A module that is imported first and installs the hooks of a test. */
  before?: string;
}

export interface Outcome {
  answer?: unknown;
  error?: { name: string; message: string; code?: string; stack: string[] };
  /** The entries that the modules append while they are evaluated. */
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

/** Returns the lines of a stack trace, except the frames of Node and of the hooks. */
function framesOf(stack: string): string[] {
  return stack.split('\n').filter((line) => !/^ +at .*(node:|ahead(-worker)?\.ts)/.test(line));
}
