import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createServer, request as send, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { buffer } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import { createDatabase, type TestDatabase } from '../support/database.ts';
import { brokenRules, takeSnapshot, type Snapshot } from './rules.ts';
import { post } from '../support/start-service.ts';
import type { Form } from './simulation.ts';
import { startVictim } from './start-victim.ts';
import { findSteps, type NamedStep, type ServiceName } from './steps.ts';
import type { Order } from './victim.ts';

export { forms, type Form } from './simulation.ts';

/** A place at which a process is killed. */
export interface Kill extends NamedStep {
  when: Order['when'];
  /** Which time the step comes. */
  nth: number;
}

/** More batches than a run has workers, so that some are left when it gives up. */
const invoices = 16;
const perBatch = 2;
/** The invoice that the provider refuses: it has the amount 0. */
const refused = 2;
/** How long anything of a case may take, in milliseconds. */
const patience = 20_000;

/** Steps towards a provider that ignores keys, and those towards one that does not: nothing is asked for again. */
const keyless: readonly string[] = ['mark', 'unmark', 'list unknown'];
const keyed: readonly string[] = ['renew', 'look up', 'heartbeat', 'keep'];

/** Steps of a reset, which one form is enough for. */
const ofReset: readonly string[] = [
  'begin reset',
  'wait to reset',
  'post reset',
  'take reset back',
  'finish reset',
];

/** The form that a step needs, or that does for those that come in array and single form only. */
export function onlyForm(name: string): Form | undefined {
  if (keyless.includes(name)) return 'keyless';
  return keyed.includes(name) || ofReset.includes(name) ? 'array' : undefined;
}

/** Every place: before and after each step of a form that the sources name, the first time it comes and the second. */
export function everyKill(form: Form): Kill[] {
  const others =
    form === 'keyless' ? [...keyed, ...ofReset] : form === 'single' ? [...keyless, ...ofReset] : keyless;
  const steps = findSteps().filter(({ name }) => !others.includes(name));
  // Without keys the first run lists what it asked for, and leaves too little for a second one to leave.
  const timesOf = (name: string) => (form === 'keyless' && name === 'count left' ? [1] : [1, 2]);
  return steps.flatMap((step) =>
    timesOf(step.name).flatMap((nth) =>
      (['before', 'after'] as const).map((when) => Object.assign({ when, nth }, step)),
    ),
  );
}

/** What has to fail at the provider for this step to come. */
function failuresTowards(name: string): Order[] {
  switch (name) {
    case 'renew':
    case 'keep':
    case 'heartbeat':
    case 'list unknown':
    case 'look up':
      // Charged, and told that it failed: the same keys come again.
      return [{ step: 'store', when: 'after', what: 'fail', count: invoices / perBatch }];
    case 'unmark':
      return [{ step: 'charge', when: 'before', what: 'reject', count: 4 }];
    case 'count left':
      return [{ step: 'charge', when: 'before', what: 'fail', count: Infinity }];
    default:
      return [];
  }
}

interface Process {
  child: ChildProcess;
  name: string;
  port: number;
}

/** Both services as processes, of which one after the other is killed and replaced. */
export class Sweep {
  readonly #form: Form;
  readonly #databases: Record<ServiceName, TestDatabase>;
  readonly #sessions: { app: Client; provider: Client };
  readonly #proxy: Server;
  readonly #running = {} as Record<ServiceName, Process>;
  /** Started ahead: it takes longer than the rest of a case. */
  readonly #standby = {} as Record<ServiceName, Promise<Process>>;
  #started = 0;
  #refusesResets = false;

  private constructor(
    form: Form,
    databases: Record<ServiceName, TestDatabase>,
    sessions: { app: Client; provider: Client },
  ) {
    this.#form = form;
    this.#databases = databases;
    this.#sessions = sessions;
    this.#proxy = this.#createProxy();
  }

  /** @param postgresUrl the superuser's */
  static async start(postgresUrl: string, form: Form): Promise<Sweep> {
    const databases = {
      'invoice-app': await createDatabase(postgresUrl),
      'payment-provider': await createDatabase(postgresUrl),
    };
    const open = async ({ url }: TestDatabase) => {
      const client = new Client({ connectionString: new URL(new URL(url).pathname, postgresUrl).href });
      await client.connect();
      // Past the trigger that keeps the history.
      await client.query('SET session_replication_role = replica');
      return client;
    };
    const sessions = {
      app: await open(databases['invoice-app']),
      provider: await open(databases['payment-provider']),
    };
    const sweep = new Sweep(form, databases, sessions);
    sweep.#proxy.listen(0, '127.0.0.1');
    await once(sweep.#proxy, 'listening');
    for (const service of ['payment-provider', 'invoice-app'] as const) {
      sweep.#running[service] = await sweep.#startProcess(service);
      sweep.#standby[service] = sweep.#startProcess(service);
    }
    return sweep;
  }

  async close(): Promise<void> {
    const processes = [...Object.values(this.#running), ...(await Promise.all(Object.values(this.#standby)))];
    for (const { child } of processes) {
      child.kill('SIGKILL');
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    }
    this.#proxy.closeAllConnections();
    this.#proxy.close();
    await this.#sessions.app.end();
    await this.#sessions.provider.end();
    for (const database of Object.values(this.#databases)) await database.drop();
  }

  /** Kills a process there, and lets recovery and pay finish. @returns what was wrong, empty if nothing */
  kill(kill: Kill): Promise<string[]> {
    const late = sleep(3 * patience, ['this case does not end'], { ref: false });
    return Promise.race([this.#kill(kill), late]);
  }

  async #kill({ service, name, when, nth }: Kill): Promise<string[]> {
    await this.#makeData();
    this.#refusesResets = name === 'take reset back';
    // A provider that takes one payment at a time has to be found out first.
    if (this.#form !== 'array') {
      await this.#pay();
      await this.#makeData();
    }
    const failures = failuresTowards(name);
    const order: Order = { step: name, when, what: 'kill', count: nth };
    if (service === 'invoice-app') await this.#arm('payment-provider', ...failures);
    await this.#arm(service, order, ...(service === 'payment-provider' ? failures : []));
    const died = once(this.#running[service].child, 'exit');
    const reached = Promise.race([died, sleep(patience, undefined, { ref: false })]);
    const paying = this.#provoke(name, nth);
    const exit = await reached;
    if (exit?.[1] !== 'SIGKILL') return ['the process did not come there'];
    const before = await takeSnapshot(this.#sessions.app);
    const dead = this.#running[service].name;
    this.#running[service] = await this.#standby[service];
    this.#standby[service] = this.#startProcess(service);
    // What was made to fail for this case, and has not yet.
    for (const each of ['invoice-app', 'payment-provider'] as const) await this.#arm(each);
    await paying;

    const wrong: string[] = [];
    if (!(await this.#recover(dead))) wrong.push('recovery does not end');
    wrong.push(...(await this.#brokenRules(before)).map((line) => `after recovery, ${line}`));
    for (let runs = 0; (await this.#countUnpaid()) > 0 && runs < 5; runs += 1) await this.#pay();
    wrong.push(...(await this.#brokenRules(before)));
    const unpaid = await this.#countUnpaid();
    if (unpaid > 0) wrong.push(`${unpaid} invoices are still unpaid`);
    return wrong;
  }

  /** A live process may look into a batch that is done, and give it back: then it is asked again. */
  async #brokenRules(before: Snapshot): Promise<string[]> {
    let broken: string[];
    const end = performance.now() + 1_000;
    do {
      broken = await brokenRules(this.#sessions, before, this.#form !== 'keyless');
    } while (
      broken.length > 0 &&
      broken.every((line) => line.startsWith('rule 7')) &&
      performance.now() < end
    );
    return broken;
  }

  /** Makes the services do what brings them to that step; resolves when what was asked for is answered. */
  async #provoke(name: string, nth: number): Promise<void> {
    const { app } = this.#sessions;
    const held = `UPDATE batches SET holder = 'nobody', leased_until = now()`;
    switch (name) {
      case 'find expired':
      case 'pause':
        // Recovery comes to it by itself, here with work to do.
        await app.query(held);
        return;
      case 'wait to reset':
        await app.query(`${held} + interval '14 s' WHERE first_id = 1`);
        await this.#reset();
        return;
      case 'begin reset':
      case 'post reset':
      case 'take reset back':
      case 'finish reset':
        // So that there is something to lose.
        await this.#pay();
        await this.#reset();
        if (nth === 2) await this.#reset();
        return;
      case 'wait':
        await app.query(`${held} + interval '14 s' WHERE first_id = 1`);
        break;
    }
    await this.#pay();
    if (name === 'refuse' && nth === 2) await app.query(`UPDATE invoices SET refused_at = NULL`);
    // A run has one of these steps.
    if (['find unpaid', 'count left', 'count stuck', 'refuse'].includes(name) && nth === 2) await this.#pay();
  }

  /** Lets the time of leases pass that no process holds any more, until recovery has left none. */
  async #recover(dead: string): Promise<boolean> {
    const { app } = this.#sessions;
    for (const end = performance.now() + patience; performance.now() < end; await sleep(5)) {
      await app.query(
        `UPDATE batches SET leased_until = now() - interval '1 ms'
         WHERE leased_until > now() AND (holder IS NULL OR holder = 'nobody' OR starts_with(holder, $1))`,
        [`${dead}/`],
      );
      await app.query(
        `UPDATE epoch SET resetting_at = now() - interval '1 min' WHERE resetting_at IS NOT NULL`,
      );
      const { rows } = await app.query(
        'SELECT FROM batches, epoch WHERE leased_until IS NOT NULL OR resetting_at IS NOT NULL LIMIT 1',
      );
      if (rows.length === 0) return true;
    }
    return false;
  }

  async #pay(): Promise<void> {
    // The process may die, or refuse.
    await post(`http://127.0.0.1:${this.#running['invoice-app'].port}/invoices/pay`).catch(() => {});
  }

  async #reset(): Promise<void> {
    await post(`http://127.0.0.1:${this.#running['invoice-app'].port}/reset`).catch(() => {});
  }

  async #countUnpaid(): Promise<number> {
    const unpaid = 'SELECT FROM invoices WHERE paid_at IS NULL AND refused_at IS NULL AND unknown_at IS NULL';
    return (await this.#sessions.app.query(unpaid)).rows.length;
  }

  async #makeData(): Promise<void> {
    await this.#sessions.provider.query('DELETE FROM payments');
    await this.#sessions.app.query(`
      UPDATE epoch SET resetting_at = NULL;
      DELETE FROM payment_events; DELETE FROM invoices; DELETE FROM batches;
      INSERT INTO invoices (id, customer_id, amount, currency)
        SELECT n, 1, CASE WHEN n = ${refused} THEN 0 ELSE 100 + n END, 'EUR' FROM generate_series(1, ${invoices}) AS n;
      INSERT INTO batches (first_id, last_id)
        SELECT n, n + ${perBatch - 1} FROM generate_series(1, ${invoices}, ${perBatch}) AS n`);
  }

  async #startProcess(service: ServiceName): Promise<Process> {
    this.#started += 1;
    const name = `${service}-${this.#started}`;
    const started = await startVictim(service, {
      INSTANCE: name,
      ENVIRONMENT: 'dev',
      ALLOW_RESET: 'true',
      DATABASE_URL: this.#databases[service].url,
      ...(service === 'invoice-app' && {
        PAYMENT_PROVIDER_URL: `http://127.0.0.1:${(this.#proxy.address() as AddressInfo).port}/payments/pay`,
      }),
    });
    return { ...started, name };
  }

  /** Gives a process its orders, and takes the earlier ones back. */
  async #arm(service: ServiceName, ...orders: Order[]): Promise<void> {
    const { child } = this.#running[service];
    const armed = once(child, 'message');
    child.send(orders);
    await armed;
  }

  /** Where invoice-app posts to, whichever process is the provider: it sees the connections break as they do. */
  #createProxy(): Server {
    return createServer((request, response) => {
      const broken = () => request.socket.resetAndDestroy();
      const forward = async () => {
        const body = await buffer(request);
        const keys = { 'accept-idempotency-key': `${this.#form !== 'keyless'}` };
        if (this.#form !== 'array' && body[0] === '['.charCodeAt(0)) {
          // What the original says to what is not one payment.
          const error = 'failed to process payment request parameters';
          response
            .writeHead(400, { 'Content-Type': 'application/json', ...keys })
            .end(JSON.stringify({ error }));
          return;
        }
        if (request.url === '/reset' && this.#refusesResets) {
          response.writeHead(404).end();
          return;
        }
        const { method, url, headers } = request;
        if (this.#form === 'keyless') delete headers['idempotency-key'];
        const { port } = this.#running['payment-provider'];
        const sent = send({ host: '127.0.0.1', port, method, path: url, headers, agent: false }, (answer) => {
          response.writeHead(answer.statusCode ?? 500, { ...answer.headers, ...keys });
          answer.on('error', broken).pipe(response);
        });
        sent.on('error', broken).end(body);
      };
      forward().catch(broken);
    });
  }
}
