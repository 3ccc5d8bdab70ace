import { Agent } from 'node:http';
import { setTimeout } from 'node:timers/promises';
import { ask } from './ask.ts';

/** The status of a response, or the error message if there was none. */
export type Answer = number | string;

/** Sends one request at a time until stopped. @param pause between two requests, in milliseconds */
export function trickle(request: () => Promise<Answer>, pause: number): { stop(): Promise<Answer[]> } {
  const answers: Answer[] = [];
  const stopping = new AbortController();
  const loop = async () => {
    while (!stopping.signal.aborted) {
      answers.push(await request().catch((error: Error) => error.message));
      await setTimeout(pause);
    }
    return answers;
  };
  const done = loop();
  return {
    stop() {
      stopping.abort();
      return done;
    },
  };
}

/** Counts the answers of each kind. */
export function count(answers: Answer[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const answer of answers) counts[answer] = (counts[answer] ?? 0) + 1;
  return counts;
}

/**
 * Keeps reading and paying invoices until stopped, both over a kept connection and over a fresh one each time.
 * @returns `stop`, which resolves to the number of answers of each kind
 */
export function trickleOfAll(url: string): { stop(): Promise<Record<string, number>> } {
  const kept = new Agent({ keepAlive: true, maxSockets: 1 });
  const requests = [
    { path: '/invoices', method: 'GET' },
    { path: '/invoices/pay', method: 'POST' },
  ];
  const trickles = requests.flatMap(({ path, method }) =>
    [kept, false as const].map((agent) =>
      trickle(async () => (await ask(url + path, { method, agent })).status, 100),
    ),
  );
  return {
    async stop() {
      const answers = await Promise.all(trickles.map((each) => each.stop()));
      kept.destroy();
      return count(answers.flat());
    },
  };
}
