// Saves in turn, round after round, under a trickle of requests.
import { setTimeout as sleep } from 'node:timers/promises';
import { hashSource } from '../../libraries/chassis/src/source.ts';
import { patience, save, since, type Way } from './clock.ts';
import { Trickle } from './trickle.ts';
import { services, type Service } from './ways.ts';

/**
 * After a save, in milliseconds: until its traces are gone, and the process that the next one needs has loaded
 * its packages. Nobody saves the next line sooner.
 */
const pause = 1_000;

/** What a save of a way took, each time, in milliseconds. */
export interface Figures {
  name: string;
  served: number[];
  /** To the end of the payment test, Infinity where it did not pass; of services only. */
  tested: number[];
}

export interface Rounds {
  figures: Figures[];
  sent: number;
  failed: number;
  failures: Map<string, number>;
}

export interface Loop {
  /** Where the services are saved, and what says how their payment test went. */
  folder: string;
  url: string;
  log: () => string;
  ways: Way[];
  say: (text: string) => void;
}

export async function runRounds(count: number, { folder, url, log, ways, say }: Loop): Promise<Rounds> {
  const figures = ways.map(({ name }): Figures => ({ name, served: [], tested: [] }));
  const trickle = new Trickle(url, (what) => say(`${what}\n${ending(log())}`));
  try {
    for (let round = 1; round <= count; round += 1) {
      // Every other time, as the payment test does not pass where somebody else has paid first.
      trickle.pays = round % 2 === 0;
      for (const [index, way] of ways.entries()) {
        const from = log().length;
        const { at, ms } = await save(way);
        figures[index]?.served.push(ms);
        const unlucky = (what: string) => say(`${way.name} ${what}:\n${ending(log().slice(from))}`);
        if (ms === Infinity) {
          unlucky('did not serve a save');
          await way.mend?.();
        } else if (services.includes(way.name as Service)) {
          const end = trickle.pays ? / ok 8 |payment test failed/ : / ok 8 /;
          const test = await since(at, patience.sync, async () => hasTested(folder, log().slice(from), end));
          if (test === Infinity) unlucky('was not tested after a save');
          if (!trickle.pays) figures[index]?.tested.push(test);
        }
        await sleep(pause);
      }
      const last = figures.map(({ name, served }) => `${name} ${served.at(-1)?.toFixed(0)}`);
      say(
        `${round} of ${count}, ms: ${last.join(', ')}; ${trickle.failed} of ${trickle.sent} requests failed`,
      );
    }
  } finally {
    await trickle.stop();
  }
  const { sent, failed, failures } = trickle;
  return { figures, sent, failed, failures };
}

/** The last lines of a log, without those that the trickle causes. */
function ending(log: string): string {
  const lines = log.split('\n').filter((line) => !/"msg":"request"| request method=/.test(line));
  return lines.slice(-15).join('\n');
}

/** Whether a log says that the payment test ran against the code that is in the folder now, and ended so. */
function hasTested(folder: string, log: string, end: RegExp): boolean {
  const seen = services.map((service) => `# ${service} ${hashSource(folder, service)}\n`);
  return new RegExp([...seen, `(${end.source})`].join('[^]*')).test(log);
}
