// `make load`: runs many slow readers and many pay requests against one process of each service, on loopback. Payments
// may take at most twice their time alone, no probe may be late, and memory must stay below the limit of the pod.
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { get } from 'node:http';
import { connect, type Socket } from 'node:net';
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { parseAllDocuments } from 'yaml';
import { freePort } from '../../local/ports.ts';
import { startPostgres } from '../../local/postgres.ts';
import { post, untilReady } from '../support/start-service.ts';

const invoices = 100_000;
const load = { readers: 200, streams: 200, pays: 50 };
/** How often to time the payments, alone and under load. The median counts. */
const rounds = 3;
/** How long a reader pauses after each chunk, in milliseconds, so that one list takes minutes. */
const readerPause = 100;
/** How long the kubelet waits for `/readyz`, and how often this script probes it, in milliseconds. */
const probe = { timeout: 2_000, interval: 100 };
/** The longest time that payments may take under load, as a multiple of their time alone. */
const maxSlowdown = 2;

const listRequest = 'GET /invoices HTTP/1.1\r\nHost: localhost\r\n\r\n';

const root = resolve(import.meta.dirname, '../..');
const say = (text: string) => process.stderr.write(`${text}\n`);

/** Returns the memory limit, in bytes, and the NODE_OPTIONS that the pods of all services have. */
async function readManifest(): Promise<{ memory: number; nodeOptions: string }> {
  const text = await readFile(resolve(root, 'kustomize/service/deployment.yaml'), 'utf8');
  const deployment = parseAllDocuments(text)
    .map((document) => document.toJS())
    .find(({ kind }) => kind === 'Deployment');
  const [{ env, resources }] = deployment.spec.template.spec.containers;
  const memory = Number(/^(\d+)Mi$/.exec(resources.limits.memory)?.[1]) * 2 ** 20;
  const nodeOptions = env.find(({ name }: { name: string }) => name === 'NODE_OPTIONS').value;
  return { memory, nodeOptions };
}

/** Starts a service as a process with the heap size of its pod. */
async function startService(service: string, databaseUrl: string, env: Record<string, string> = {}) {
  const { memory: limit, nodeOptions } = await readManifest();
  const port = await freePort();
  const child = spawn('node', [`services/${service}/src/main.ts`], {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
    env: {
      PATH: process.env.PATH,
      NODE_OPTIONS: nodeOptions,
      HOST: '127.0.0.1',
      PORT: `${port}`,
      METRICS_PORT: '0',
      ENVIRONMENT: 'dev',
      DATABASE_URL: databaseUrl,
      ALLOW_RESET: 'true',
      LOG_LEVEL: 'error',
      ...env,
    },
  });
  const url = `http://127.0.0.1:${port}`;
  await untilReady(url);
  let memory = 0;
  const sampleMemory = async () => {
    const { stdout } = await promisify(execFile)('ps', ['-o', 'rss=', '-p', `${child.pid}`]);
    memory = Math.max(memory, Number(stdout) * 1024);
  };
  await sampleMemory();
  const sample = setInterval(() => void sampleMemory().catch(() => {}), 250);
  return {
    name: service,
    url,
    port,
    limit,
    /** The peak so far, in bytes. */
    memory: () => memory,
    async stop() {
      clearInterval(sample);
      child.kill();
      await once(child, 'exit');
    },
  };
}

/** Requests every invoice in a loop and reads slowly. After a 503, it waits for the time in `Retry-After`. */
class SlowReader {
  readonly #port: number;
  #socket: Socket | undefined;
  #stopped = false;
  /** Whether it is receiving a list. */
  reads = false;
  /** The lists refused with 503. */
  refused = 0;
  /** The lists cut off before their end. */
  broken = 0;

  constructor(port: number) {
    this.#port = port;
    void this.#read();
  }

  stop(): void {
    this.#stopped = true;
    this.#socket?.destroy();
  }

  async #read(): Promise<void> {
    while (!this.#stopped) {
      const socket = connect(this.#port, '127.0.0.1').on('error', () => {});
      this.#socket = socket;
      let end = '';
      try {
        socket.write(listRequest);
        for await (const chunk of socket) {
          end = (chunk as Buffer).toString();
          if (this.reads || !end.includes(' 503 ')) {
            this.reads = true;
            await sleep(readerPause);
            continue;
          }
          this.refused += 1;
          await sleep(Number(/^Retry-After: (\d+)/m.exec(end)?.[1]) * 1_000);
          socket.write(listRequest);
        }
      } catch {
        // The connection was cut off, or `stop` closed it.
      }
      if (this.reads && !this.#stopped && !end.endsWith('\r\n0\r\n\r\n')) this.broken += 1;
      this.reads = false;
      await sleep(1_000);
    }
  }
}

/** Opens `/progress` and reads all events. */
function openStream(port: number): Socket {
  const socket = connect(port, '127.0.0.1').on('error', () => {});
  socket.write('GET /progress HTTP/1.1\r\nHost: localhost\r\n\r\n');
  return socket.resume();
}

/** Sends a probe as the kubelet does, over a new connection. */
async function isOk(url: string): Promise<boolean> {
  try {
    const [response] = await once(get(url, { agent: false }), 'response');
    response.resume();
    return response.statusCode === 200;
  } catch {
    return false;
  }
}

/**
 * Probes at regular intervals.
 * @returns stops it, and resolves to the slowest time, in milliseconds, and the number of answers other than 200
 */
function startProbing(url: string): () => Promise<{ slowest: number; failed: number }> {
  const seen = { slowest: 0, failed: 0 };
  const probes = new Set<Promise<void>>();
  const timer = setInterval(() => {
    const start = performance.now();
    const isReady = isOk(`${url}/readyz`);
    const note = async () => {
      if (!(await isReady)) seen.failed += 1;
      seen.slowest = Math.max(seen.slowest, performance.now() - start);
    };
    probes.add(note());
  }, probe.interval);
  return async () => {
    clearInterval(timer);
    await Promise.all(probes);
    return seen;
  };
}

/**
 * Times simultaneous pay requests. The first one pays every invoice.
 * @param startLoad starts the other load once the invoices are reset, and returns the function that ends it
 * @returns the median time until all are answered, in milliseconds
 */
async function timePays(url: string, startLoad: () => Promise<() => Promise<void>>): Promise<number> {
  const times: number[] = [];
  for (let round = 0; round < rounds; round += 1) {
    const reset = await post(`${url}/reset`);
    if (reset.status !== 200) throw new Error(`reset: ${reset.status} ${JSON.stringify(reset.body)}`);
    const endLoad = await startLoad();
    const start = performance.now();
    const answers = await Promise.all(Array.from({ length: load.pays }, () => post(`${url}/invoices/pay`)));
    times.push(performance.now() - start);
    await endLoad();
    const wrong = answers.find(({ status }) => status !== 200);
    if (wrong) throw new Error(`pay: ${wrong.status} ${JSON.stringify(wrong.body)}`);
  }
  say(`  ${times.map((time) => `${Math.round(time)} ms`).join(', ')}`);
  return times.toSorted((a, b) => a - b)[Math.floor(rounds / 2)]!;
}

async function main(): Promise<void> {
  const postgres = await startPostgres({ databases: ['invoice_app', 'payment_provider'] });
  const provider = await startService('payment-provider', postgres.url('payment_provider'));
  const app = await startService('invoice-app', postgres.url('invoice_app'), {
    SEED_INVOICES: `${invoices}`,
    PAYMENT_PROVIDER_URL: `${provider.url}/payments/pay`,
  });
  const wrong: string[] = [];
  const check = (isRight: boolean, text: string) => {
    say(`${isRight ? 'ok' : 'NOT OK'}  ${text}`);
    if (!isRight) wrong.push(text);
  };
  try {
    say(`${load.pays} pay requests for ${invoices} invoices, alone`);
    const alone = await timePays(app.url, async () => async () => {});
    say(`the same with ${load.readers} slow readers of all invoices and ${load.streams} event streams`);
    const seen = { reading: 0, refused: 0, broken: 0, open: load.streams, slowest: 0, failed: 0 };
    const loaded = await timePays(app.url, async () => {
      const streams = Array.from({ length: load.streams }, () => openStream(app.port));
      const readers = Array.from({ length: load.readers }, () => new SlowReader(app.port));
      await sleep(3_000);
      const stopProbing = startProbing(app.url);
      return async () => {
        const { slowest, failed } = await stopProbing();
        seen.slowest = Math.max(seen.slowest, slowest);
        seen.failed += failed;
        seen.reading = readers.filter(({ reads }) => reads).length;
        seen.refused += readers.reduce((sum, reader) => sum + reader.refused, 0);
        seen.broken += readers.reduce((sum, reader) => sum + reader.broken, 0);
        seen.open = Math.min(seen.open, streams.filter((stream) => !stream.closed).length);
        for (const each of readers) each.stop();
        for (const each of streams) each.destroy();
      };
    });
    const { reading, refused, broken, open, slowest, failed } = seen;
    const slowdown = (loaded / alone).toFixed(2);
    check(
      loaded <= maxSlowdown * alone,
      `paying took ${slowdown} times as long as alone (limit ${maxSlowdown})`,
    );
    const late = `the slowest /readyz took ${Math.round(slowest)} ms (limit ${probe.timeout})`;
    check(failed === 0 && slowest < probe.timeout, `${late}, ${failed} were not 200`);
    check(reading > 0 && refused > 0, `${reading} lists were being sent, ${refused} were refused with 503`);
    check(broken === 0, `${broken} lists were cut off`);
    check(open === load.streams, `${open} event streams were open`);
    for (const { name, memory, limit } of [app, provider]) {
      const [most, allowed] = [memory(), limit].map((bytes) => Math.round(bytes / 2 ** 20)) as [
        number,
        number,
      ];
      check(most < allowed, `${name} used ${most} MiB (limit of its pod: ${allowed})`);
    }
  } finally {
    await app.stop();
    await provider.stop();
    await postgres.stop();
  }
  process.exitCode = wrong.length === 0 ? 0 : 1;
}

await main();
