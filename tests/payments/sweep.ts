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
import { findFailpoints, type Failpoint, type ServiceName } from './failpoints.ts';
import type { Fault } from './victim.ts';

export { forms, type Form } from './simulation.ts';

/** A place at which to kill a process. */
export interface Kill extends Failpoint {
  when: Fault['when'];
  /** The pass through the failpoint, from 1 up. */
  nth: number;
}

/** Makes more batches than a run has workers, so that some are left when the run gives up. */
const invoices = 16;
const perBatch = 2;
/** The id of the invoice that the provider refuses, because its amount is 0. */
const refused = 2;
/** How long each part of a case may take, in milliseconds. */
const patience = 20_000;

/** Failpoints covered only at a provider that ignores keys. */
const keyless: readonly string[] = ['mark', 'unmark', 'list unknown'];
/** Failpoints of retries, which need keys. Only retries make a batch last until a heartbeat. */
const keyed: readonly string[] = ['renew', 'look up', 'heartbeat', 'keep'];

/** Failpoints of a reset, which does not depend on the form: one form is enough. */
const ofReset: readonly string[] = [
  'begin reset',
  'wait to reset',
  'post reset',
  'cancel reset',
  'finish reset',
];

/** Returns the only form in which sweep.test.ts covers this failpoint; undefined if any form may cover it. */
export function onlyForm(name: string): Form | undefined {
  if (keyless.includes(name)) return 'keyless';
  return keyed.includes(name) || ofReset.includes(name) ? 'array' : undefined;
}

/** Returns every place to kill at: before and after each failpoint of the form, at its first and second pass. */
export function everyKill(form: Form): Kill[] {
  const others =
    form === 'keyless' ? [...keyed, ...ofReset] : form === 'single' ? [...keyless, ...ofReset] : keyless;
  const failpoints = findFailpoints().filter(({ name }) => !others.includes(name));
  // At a keyless provider, the first run reports its requests as unknown. Too few invoices remain for a second pass.
  const passesOf = (name: string) => (form === 'keyless' && name === 'count left' ? [1] : [1, 2]);
  return failpoints.flatMap((failpoint) =>
    passesOf(failpoint.name).flatMap((nth) =>
      (['before', 'after'] as const).map((when) => Object.assign({ when, nth }, failpoint)),
    ),
  );
}

/** Returns the provider faults that make the service reach this failpoint. */
function faultsLeadingTo(name: string): Fault[] {
  switch (name) {
    case 'renew':
    case 'keep':
    case 'heartbeat':
    case 'list unknown':
    case 'look up':
      // The charge is stored but its answer is an error, so the same keys are retried.
      return [{ failpoint: 'store', when: 'after', action: 'fail', count: invoices / perBatch }];
    case 'unmark':
      return [{ failpoint: 'charge', when: 'before', action: 'reject', count: 4 }];
    case 'count left':
      return [{ failpoint: 'charge', when: 'before', action: 'fail', count: Infinity }];
    default:
      return [];
  }
}

interface Process {
  child: ChildProcess;
  name: string;
  port: number;
}

/** Runs both services as processes, and kills and replaces one at a time. */
export class Sweep {
  readonly #form: Form;
  readonly #databases: Record<ServiceName, TestDatabase>;
  readonly #sessions: { app: Client; provider: Client };
  readonly #proxy: Server;
  readonly #running = {} as Record<ServiceName, Process>;
  /** Started ahead, because a start takes longer than the rest of a case. */
  readonly #spare = {} as Record<ServiceName, Promise<Process>>;
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

  /** @param postgresUrl the URL of the superuser */
  static async start(postgresUrl: string, form: Form): Promise<Sweep> {
    const databases = {
      'invoice-app': await createDatabase(postgresUrl),
      'payment-provider': await createDatabase(postgresUrl),
    };
    const open = async ({ url }: TestDatabase) => {
      const client = new Client({ connectionString: new URL(new URL(url).pathname, postgresUrl).href });
      await client.connect();
      // Disables the triggers, which would keep the history from being deleted.
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
      sweep.#spare[service] = sweep.#startProcess(service);
    }
    return sweep;
  }

  async close(): Promise<void> {
    const processes = [...Object.values(this.#running), ...(await Promise.all(Object.values(this.#spare)))];
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

  /** Kills a process at this place, then lets recovery and pay finish. @returns the problems found, empty if none */
  kill(kill: Kill): Promise<string[]> {
    const late = sleep(3 * patience, ['the case did not end in time'], { ref: false });
    return Promise.race([this.#kill(kill), late]);
  }

  async #kill({ service, name, when, nth }: Kill): Promise<string[]> {
    await this.#createData();
    this.#refusesResets = name === 'cancel reset';
    // invoice-app must first learn that the provider takes no arrays.
    if (this.#form !== 'array') {
      await this.#pay();
      await this.#createData();
    }
    const faults = faultsLeadingTo(name);
    const kill: Fault = { failpoint: name, when, action: 'kill', count: nth };
    if (service === 'invoice-app') await this.#arm('payment-provider', ...faults);
    await this.#arm(service, kill, ...(service === 'payment-provider' ? faults : []));
    const died = once(this.#running[service].child, 'exit');
    const reached = Promise.race([died, sleep(patience, undefined, { ref: false })]);
    const paying = this.#drive(name, nth);
    const exit = await reached;
    if (exit?.[1] !== 'SIGKILL') return ['the process never reached this place'];
    const before = await takeSnapshot(this.#sessions.app);
    const killed = this.#running[service].name;
    this.#running[service] = await this.#spare[service];
    this.#spare[service] = this.#startProcess(service);
    // Removes the faults of this case that are still armed.
    for (const each of ['invoice-app', 'payment-provider'] as const) await this.#arm(each);
    await paying;

    const problems: string[] = [];
    if (!(await this.#recover(killed))) problems.push('recovery did not finish in time');
    problems.push(...(await this.#brokenRules(before)).map((line) => `after recovery, ${line}`));
    for (let runs = 0; (await this.#countUnpaid()) > 0 && runs < 5; runs += 1) await this.#pay();
    problems.push(...(await this.#brokenRules(before)));
    const unpaid = await this.#countUnpaid();
    if (unpaid > 0) problems.push(`${unpaid} invoices are still unpaid`);
    return problems;
  }

  /** Checks the rules, and again while only rule 7 is broken: a live process may briefly hold a finished batch. */
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

  /** Makes the services reach the failpoint. Resolves when the requests for that are answered. */
  async #drive(name: string, nth: number): Promise<void> {
    const { app } = this.#sessions;
    const held = `UPDATE batches SET holder = 'nobody', leased_until = now()`;
    switch (name) {
      case 'find expired':
      case 'pause':
        // Recovery reaches it by itself; the expired leases give it work.
        await app.query(held);
        return;
      case 'wait to reset':
        await app.query(`${held} + interval '14 s' WHERE first_id = 1`);
        await this.#reset();
        return;
      case 'begin reset':
      case 'post reset':
      case 'cancel reset':
      case 'finish reset':
        // Pays first, so that the reset has payments to delete.
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
    // A run passes these failpoints once, so the second pass needs another run.
    if (['find unpaid', 'count left', 'count stuck', 'refuse'].includes(name) && nth === 2) await this.#pay();
  }

  /** Expires the leases without a living holder, until recovery has left none. */
  async #recover(killed: string): Promise<boolean> {
    const { app } = this.#sessions;
    for (const end = performance.now() + patience; performance.now() < end; await sleep(5)) {
      await app.query(
        `UPDATE batches SET leased_until = now() - interval '1 ms'
         WHERE leased_until > now() AND (holder IS NULL OR holder = 'nobody' OR starts_with(holder, $1))`,
        [`${killed}/`],
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
    // The process may be killed meanwhile.
    await post(`http://127.0.0.1:${this.#running['invoice-app'].port}/invoices/pay`).catch(() => {});
  }

  async #reset(): Promise<void> {
    await post(`http://127.0.0.1:${this.#running['invoice-app'].port}/reset`).catch(() => {});
  }

  async #countUnpaid(): Promise<number> {
    const unpaid = 'SELECT FROM invoices WHERE paid_at IS NULL AND refused_at IS NULL AND unknown_at IS NULL';
    return (await this.#sessions.app.query(unpaid)).rows.length;
  }

  async #createData(): Promise<void> {
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

  /** Sets the faults of a process, instead of its earlier ones. */
  async #arm(service: ServiceName, ...faults: Fault[]): Promise<void> {
    const { child } = this.#running[service];
    const armed = once(child, 'message');
    child.send(faults);
    await armed;
  }

  /** Forwards invoice-app's requests to the current provider process, and passes broken connections on. */
  #createProxy(): Server {
    return createServer((request, response) => {
      const resetConnection = () => request.socket.resetAndDestroy();
      const forward = async () => {
        const body = await buffer(request);
        const keys = { 'accept-idempotency-key': `${this.#form !== 'keyless'}` };
        if (this.#form !== 'array' && body[0] === '['.charCodeAt(0)) {
          // The original's answer to anything but a single payment.
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
          answer.on('error', resetConnection).pipe(response);
        });
        sent.on('error', resetConnection).end(body);
      };
      forward().catch(resetConnection);
    });
  }
}
