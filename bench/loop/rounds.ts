// Saves the files in turn, round after round, while a trickle of requests runs.
import { setTimeout as sleep } from 'node:timers/promises';
import { hashSource } from '../../libraries/chassis/src/source.ts';
import { patience, save, since, type Way } from './clock.ts';
import { Trickle } from './trickle.ts';
import { services, type Service } from './ways.ts';

/**
 * The wait after a save, in milliseconds. The effects of the save are over by then, and the next standby process has
 * loaded its packages. People do not save faster.
 */
const pause = 1_000;

/** The durations of the saves of a way, in milliseconds. */
export interface Figures {
  name: string;
  served: number[];
  /** Until the payment test ended, Infinity if it did not pass; of services only. */
  tested: number[];
}

export interface Rounds {
  figures: Figures[];
  sent: number;
  failed: number;
  failures: Map<string, number>;
}

export interface Loop {
  /** The folder with the sources. `log` has the output of their payment test. */
  folder: string;
  url: string;
  log: () => string;
  ways: Way[];
  say: (text: string) => void;
}

export async function runRounds(count: number, { folder, url, log, ways, say }: Loop): Promise<Rounds> {
  const figures = ways.map(({ name }): Figures => ({ name, served: [], tested: [] }));
  const trickle = new Trickle(url, (failure) => say(`${failure}\n${ending(log())}`));
  try {
    for (let round = 1; round <= count; round += 1) {
      // Pays in every second round only: the payment test fails if other requests pay its invoices first.
      trickle.pays = round % 2 === 0;
      for (const [index, way] of ways.entries()) {
        const from = log().length;
        const { at, ms } = await save(way);
        figures[index]?.served.push(ms);
        const reportFailure = (problem: string) =>
          say(`${way.name} ${problem}:\n${ending(log().slice(from))}`);
        if (ms === Infinity) {
          reportFailure('did not serve a save');
          await way.mend?.();
        } else if (services.includes(way.name as Service)) {
          const end = trickle.pays ? / ok 8 |payment test failed/ : / ok 8 /;
          const test = await since(at, patience.sync, async () => hasTested(folder, log().slice(from), end));
          if (test === Infinity) reportFailure('was not tested after a save');
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

/** Returns the last lines of a log, without the request lines of the trickle. */
function ending(log: string): string {
  const lines = log.split('\n').filter((line) => !/"msg":"request"| request method=/.test(line));
  return lines.slice(-15).join('\n');
}

/** Returns whether a log shows that the payment test ran against the code now in the folder and ended with `end`. */
function hasTested(folder: string, log: string, end: RegExp): boolean {
  const seen = services.map((service) => `# ${service} ${hashSource(folder, service)}\n`);
  return new RegExp([...seen, `(${end.source})`].join('[^]*')).test(log);
}
