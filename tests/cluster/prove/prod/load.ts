// Puts steady load on invoice-app from a pod in the cluster. The pod has no other file of the project, so this file
// imports only Node's modules. At the end it prints the number of good answers, and each request that failed or lost
// its connection.
import { Agent, request } from 'node:http';
import { setTimeout } from 'node:timers/promises';

/** The report that the pod prints, as one line of JSON. */
export interface Report {
  seconds: number;
  answered: Record<string, number>;
  failures: string[];
}

const { TARGET, SECONDS = '0', WORKERS = '10', PAUSE_MS = '50', ONLY } = process.env;
const seconds = Number(SECONDS);
const pause = Number(PAUSE_MS);
const report: Report = { seconds, answered: {}, failures: [] };
const start = performance.now();
const keeping = new Agent({ keepAlive: true });
const closing = new Agent({ keepAlive: false });

interface Answer {
  status: number | undefined;
  body: string;
}

function ask(agent: Agent, method: string, path: string): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const sent = request(`${TARGET}${path}`, { agent, method, timeout: 15_000 }, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (text: string) => (body += text));
      response.on('end', () => resolve({ status: response.statusCode, body })).on('error', reject);
    });
    sent.on('timeout', () => sent.destroy(new Error('no answer within 15 s'))).on('error', reject);
    sent.end();
  });
}

/** Repeats a request until the time is over. */
async function work(
  name: string,
  wait: number,
  once: () => Promise<Answer>,
  isGood: (body: string) => boolean,
) {
  while (performance.now() - start < seconds * 1_000) {
    const at = ((performance.now() - start) / 1_000).toFixed(1);
    try {
      const { status, body } = await once();
      if (status === 200 && isGood(body)) report.answered[name] = (report.answered[name] ?? 0) + 1;
      else report.failures.push(`${name} at ${at} s: ${status} ${body.slice(0, 200)}`);
    } catch (error) {
      report.failures.push(
        `${name} at ${at} s: ${(error as NodeJS.ErrnoException).code} ${(error as Error).message}`,
      );
    }
    await setTimeout(wait);
  }
}

const readWith = (name: string, agent: Agent) =>
  work(
    name,
    pause,
    () => ask(agent, 'GET', '/invoices?limit=20'),
    (body) => body.startsWith('['),
  );
const kept = () => readWith('kept', keeping);
const fresh = () => readWith('fresh', closing);
// /version queries both services. invoice-app opens a new connection to the provider for it.
const version = () =>
  work(
    'version',
    pause,
    () => ask(closing, 'GET', '/version'),
    (body) => !body.includes('"provider":null'),
  );
const pay = () =>
  work(
    'pay',
    500,
    () => ask(keeping, 'POST', '/invoices/pay'),
    (body) => body === '{}',
  );
const workers = Array.from({ length: Number(WORKERS) });
const others = ONLY === 'kept' ? [] : [fresh, fresh, version, pay];
await Promise.all([...workers.map(() => kept), ...others].map((kind) => kind()));
console.log(JSON.stringify(report));
