import { subscribe } from 'node:diagnostics_channel';
import type { Server } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import { Database, DatabaseUnavailable, type DatabaseOptions } from '@payloop/chassis/database.ts';
import { createLog } from '@payloop/chassis/log.ts';
import type { Running } from '@payloop/chassis/server.ts';
import type { Step } from '@payloop/chassis/step.ts';
import type { AxiosAdapter } from 'axios';
import type { Scheduler } from 'fast-check';
import { Client } from 'pg';
import { batchSize, migrations } from '../../services/invoice-app/src/invoices.ts';
import { Payments, type Tally } from '../../services/invoice-app/src/payments.ts';
import { Provider } from '../../services/invoice-app/src/provider.ts';
import { Resets } from '../../services/invoice-app/src/reset.ts';
import { createUndiciAdapter } from '../../services/invoice-app/src/undici-adapter.ts';
import * as paymentProvider from '../../services/payment-provider/src/service.ts';
import { createDatabase } from '../support/database.ts';
import { brokenRules, takeSnapshot } from './rules.ts';
import { untilReady } from '../support/start-service.ts';

/** The faults that a step can suffer. */
export const faults = [
  /** The process crashes before the call. */
  'crash before',
  /** The process crashes once the call has taken effect, or once the request has arrived. */
  'crash after',
  /** The call fails without effect. */
  'lost',
  /** The call takes effect, now or later, but its caller sees it fail. */
  'answer lost',
] as const;
export type Fault = (typeof faults)[number];

/** The commands from outside, at moments that the scheduler chooses. */
export const commands = [
  'pay 0',
  'pay 1',
  'recover 0',
  'recover 1',
  'leases run out',
  'heartbeats',
  'clock goes back',
  'reset 0',
  'reset 1',
] as const;
export type Command = (typeof commands)[number];

/** The forms of the provider: it takes arrays, or single payments only, or single payments while it ignores keys. */
export const forms = ['array', 'single', 'keyless'] as const;
export type Form = (typeof forms)[number];

export interface Plan {
  /** The id of the first invoice; the others follow. The ids decide which invoices are declined, and when. */
  firstId: number;
  form: Form;
  commands: Command[];
  /** The fault of the n-th step that the scheduler releases. */
  faults: { at: number; fault: Fault }[];
  /** The steps during which the provider sends no response. They can outlast all retries. */
  silence: { from: number; steps: number };
  /** The steps during which Postgres is read-only for invoice-app, as a standby is. */
  readOnly: { from: number; steps: number };
}

const invoices = 6;
const perBatch = 2;
/** A database that is read-only while `isReadOnly` returns true, as after a failover to a standby. */
class FailoverDatabase extends Database {
  constructor(options: DatabaseOptions, isReadOnly: () => boolean) {
    super(options);
    const { query } = this;
    const readOnly: Database['transaction'] = (work) =>
      super.transaction(async (ask) => {
        await ask('SET TRANSACTION READ ONLY');
        return work(ask);
      });
    this.query = (text, values) =>
      isReadOnly() ? readOnly((ask) => ask(text, values)) : query(text, values);
    this.transaction = (work) => (isReadOnly() ? readOnly(work) : super.transaction(work));
  }
}

/** The index of the invoice that the provider refuses, because its amount is 0. */
const refused = 3;
/** The share of charges that the provider declines. */
const failureRate = '0.15';
/** The maximum number of steps. No run that ends needs as many. */
const maxSteps = 5_000;
/** The maximum number of payment runs until no invoice is payable. Each leaves only the declined invoices. */
const maxPays = 40;

/** A simulated process, which runs until it is dead. */
interface Replica {
  name: string;
  /** The index of the process among the replicas of its service. */
  slot: number;
  dead: boolean;
  steps: number;
}
interface App extends Replica {
  payments: Payments;
  resets: Resets;
}
interface ProviderReplica extends Replica {
  running: Running;
  sockets: Set<Socket>;
}

/** A step that waits for its release. */
interface Held {
  label: string;
  owner: Replica | undefined;
  name: string;
  go: (fault: Fault | undefined) => void;
  fail: (error: Error) => void;
}

/** A request to the provider, until its response has arrived. */
interface Request {
  /** `at the provider` while a step of the provider handles it. `#moving` counts it on its way and on its way back. */
  at: 'on its way' | 'at the provider' | 'on its way back' | 'done';
  provider?: ProviderReplica;
}

/** Returns statements that create the data of a run: in our sessions without triggers, in a reset with them. */
const dataOf = (firstId: number) => [
  `INSERT INTO customers VALUES (1, 'EUR') ON CONFLICT DO NOTHING`,
  `INSERT INTO invoices (id, customer_id, amount, currency)
   SELECT ${firstId} + n, 1, CASE WHEN n = ${refused} THEN 0 ELSE 100 + n END, (ARRAY['EUR', 'JPY', 'TND'])[1 + n % 3]
   FROM generate_series(0, ${invoices - 1}) AS n`,
  'DELETE FROM batches',
  `INSERT INTO batches (first_id, last_id)
   SELECT first, first + ${Math.min(perBatch, batchSize) - 1}
   FROM generate_series(${firstId}, ${firstId + invoices - 1}, ${perBatch}) AS first`,
];

const byNumber = new Intl.Collator('en', { numeric: true });
const crashed = () => new Error('this process is dead');

/**
 * Runs two replicas of each service in this process, on a real Postgres, with real HTTP between them. Each step of a
 * payment waits until the scheduler releases it. The next release waits until everything is at rest, so the plan and
 * the schedule alone determine a run.
 *
 * At rest means that every request, statement and timer has reached a waiting step or has ended. `#moving` counts those
 * that have not. Everything else settles within a turn or two of the event loop.
 */
export class Simulation {
  readonly #close: (() => Promise<unknown>)[];
  readonly #databases: Database[];
  readonly #providerUrl: string;
  readonly #sessions: { app: Client; provider: Client };
  readonly #log = createLog('model', 'silent');
  readonly #http = createUndiciAdapter({ connections: 64 });
  readonly #sockets = new Map<number, Set<Socket>>();
  #providers: ProviderReplica[] = [];
  #apps: App[] = [];
  readonly #starts = new Map<string, number>();

  // State of the current run.
  #scheduler!: Scheduler;
  #plan!: Plan;
  #commands: Command[] = [];
  #waiting: Held[] = [];
  #scheduled = new Set<Held>();
  #leaseWaiters: Held[] = [];
  #heartbeats: Held[] = [];
  #moving = 0;
  #holds = 0;
  #released = 0;
  #posts = 0;
  #inFlight = new Set<Request>();
  #trace: string[] = [];
  #problems: string[] = [];

  private constructor(
    databases: Database[],
    providerUrl: string,
    sessions: { app: Client; provider: Client },
    close: (() => Promise<unknown>)[],
  ) {
    this.#databases = databases;
    this.#providerUrl = providerUrl;
    this.#sessions = sessions;
    this.#close = close;
    // The only way to the connections of a server that another module creates.
    subscribe('http.server.request.start', (message) => {
      const { server, socket } = message as { server: Server; socket: Socket };
      this.#sockets.get((server.address() as AddressInfo | null)?.port ?? -1)?.add(socket);
    });
  }

  /** @param postgresUrl the URL of the superuser */
  static async start(postgresUrl: string): Promise<Simulation> {
    const [own, other] = [await createDatabase(postgresUrl), await createDatabase(postgresUrl)];
    const open = async (url: string) => {
      const { pathname } = new URL(url);
      const client = new Client({ connectionString: new URL(pathname, postgresUrl).href });
      await client.connect();
      // The data need not survive a crash of Postgres. Without triggers, each run can delete the history.
      await client.query(`ALTER DATABASE ${pathname.slice(1)} SET synchronous_commit = off`);
      await client.query(
        `SET session_replication_role = replica; SET synchronous_commit = off; SET jit = off`,
      );
      return client;
    };
    const sessions = { app: await open(own.url), provider: await open(other.url) };
    const log = createLog('model', 'silent');
    const databases = [0, 1].map(
      () =>
        new FailoverDatabase({ url: own.url, migrations, log, service: 'invoice-app' }, () =>
          simulation.#isIn('readOnly'),
        ),
    );
    for (const database of databases) await database.opened;
    const simulation: Simulation = new Simulation(databases, other.url, sessions, [
      ...databases.map((database) => () => database.close()),
      () => sessions.app.end(),
      () => sessions.provider.end(),
      () => own.drop(),
      () => other.drop(),
    ]);
    await simulation.restartProviders();
    return simulation;
  }

  async close(): Promise<void> {
    for (const provider of this.#providers) this.#kill(provider);
    for (const close of this.#close) await close();
  }

  /** Starts providers without earlier decisions, so that the same plan can run again. */
  async restartProviders(): Promise<void> {
    this.#starts.clear();
    for (const provider of this.#providers) this.#kill(provider);
    this.#providers = [await this.#startProvider(0), await this.#startProvider(1)];
  }

  /** The steps of the last run, in the order of their release. */
  get trace(): readonly string[] {
    return this.#trace;
  }

  /** Runs a plan to its end, then lets recovery and pay finish. @returns the problems found, empty if none */
  async run(scheduler: Scheduler, plan: Plan): Promise<string[]> {
    this.#scheduler = scheduler;
    this.#plan = plan;
    this.#commands = plan.commands;
    this.#trace = [];
    this.#problems = [];
    this.#released = 0;
    this.#posts = 0;
    this.#starts.clear();
    this.#heartbeats = [];
    for (const provider of this.#providers) {
      // The providers outlive a run. A fresh name and step count hide the earlier runs.
      Object.assign(provider, this.#createReplica('provider', provider.slot));
    }
    await this.#createData(plan.firstId);
    this.#apps = [this.#startApp(0), this.#startApp(1)];
    for (const [index, command] of plan.commands.entries()) {
      this.#hold(undefined, `command ${index}: ${command}`, command).then(
        () => this.#execute(command),
        () => {},
      );
    }
    await this.#untilQuiet();

    const before = await takeSnapshot(this.#sessions.app);
    const never = { from: 0, steps: 0 };
    this.#plan = { ...plan, faults: [], silence: never, readOnly: never };
    await this.#expireLeases();
    this.#recover(this.#apps[0]!);
    await this.#untilQuiet();
    const broken = () => brokenRules(this.#sessions, before, plan.form !== 'keyless');
    this.#problems.push(...(await broken()).map((line) => `after recovery, ${line}`));
    for (let pays = 0; (await this.#countPayable()) > 0 && pays < maxPays; pays += 1) {
      this.#pay(this.#apps[pays % 2]!);
      await this.#untilQuiet();
    }
    this.#problems.push(...(await broken()));
    const payable = await this.#countPayable();
    if (payable > 0) this.#problems.push(`${payable} invoices are still unpaid`);
    for (const app of this.#apps) app.dead = true;
    return this.#problems;
  }

  // ---- data and processes

  async #createData(firstId: number): Promise<void> {
    const { app, provider } = this.#sessions;
    await provider.query('DELETE FROM payments');
    await app.query('DELETE FROM payment_events; DELETE FROM invoices; UPDATE epoch SET resetting_at = NULL');
    for (const statement of dataOf(firstId)) await app.query(statement);
  }

  async #countPayable(): Promise<number> {
    // Refused invoices and unknown outcomes wait for manual review.
    const { rows } = await this.#query(
      'SELECT FROM invoices WHERE paid_at IS NULL AND refused_at IS NULL AND unknown_at IS NULL',
    );
    return rows.length;
  }

  /** Queues a statement, because a session runs one at a time. */
  #query(text: string) {
    const result = this.#lastQuery.then(() => this.#sessions.app.query(text));
    this.#lastQuery = result;
    return result;
  }

  #lastQuery: Promise<unknown> = Promise.resolve();

  /** Backdates leases and resets instead of waiting for their time. */
  async #expireLeases(): Promise<void> {
    await this.#query(
      `UPDATE batches SET leased_until = now() - interval '1 ms' WHERE leased_until < now() + interval '1 min'`,
    );
    await this.#query(
      `UPDATE epoch SET resetting_at = now() - interval '1 min' WHERE resetting_at IS NOT NULL`,
    );
    this.#wake();
  }

  /** Moves the ends of the leases forward. For the leases, this is the same as a clock that went back. */
  async #setClockBack(): Promise<void> {
    await this.#query(`UPDATE batches SET leased_until = leased_until + interval '1 h'`);
    this.#wake();
  }

  #createReplica(kind: string, slot: number): Replica {
    const name = `${kind} ${slot}`;
    const starts = (this.#starts.get(name) ?? 0) + 1;
    this.#starts.set(name, starts);
    return { name: starts === 1 ? name : `${name} (start ${starts})`, slot, dead: false, steps: 0 };
  }

  #startApp(slot: number): App {
    const replica = this.#createReplica('app', slot);
    const step = this.#stepOf(replica);
    const provider = new Provider({
      url: 'http://provider/payments/pay',
      log: this.#log,
      arrays: this.#plan.form === 'array',
      keys: this.#plan.form !== 'keyless',
      step,
      adapter: this.#send,
    });
    // Each retry counts as moving until it reaches its first step, `renew`.
    const backoff = { duration: 0, next: () => ((this.#moving += 1), backoff) };
    const resets = new Resets({
      database: this.#databases[slot]!,
      provider,
      seed: async (query) => {
        for (const statement of dataOf(this.#plan.firstId)) await query(statement);
      },
      step,
    });
    const payments = new Payments({
      resets,
      database: this.#databases[slot]!,
      provider,
      holder: replica.name,
      step,
      log: this.#log,
      backoff,
    });
    return Object.assign(replica, { payments, resets });
  }

  async #startProvider(slot: number): Promise<ProviderReplica> {
    const replica = this.#createReplica('provider', slot);
    const running = await paymentProvider.start({
      source: '',
      instance: replica.name,
      env: {
        HOST: '127.0.0.1',
        PORT: '0',
        METRICS_PORT: '0',
        LOG_LEVEL: 'silent',
        ENVIRONMENT: 'dev',
        DATABASE_URL: this.#providerUrl,
        ALLOW_RESET: 'true',
        FAILURE_RATE: failureRate,
        FAULT_SEED: `${slot}`,
      },
      step: this.#stepOf(replica),
    });
    const sockets = new Set<Socket>();
    this.#sockets.set(running.port, sockets);
    await untilReady(`http://127.0.0.1:${running.port}`);
    return Object.assign(replica, { running, sockets });
  }

  // ---- commands and crashes

  #execute(command: Command): void | Promise<void> {
    if (command === 'leases run out') return this.#move(this.#expireLeases());
    if (command === 'clock goes back') return this.#move(this.#setClockBack());
    if (command === 'heartbeats') {
      this.#waiting.push(...this.#heartbeats.splice(0));
      return;
    }
    const [action, slot] = command.split(' ');
    const app = this.#apps[Number(slot)]!;
    if (app.dead) return;
    if (action === 'pay') this.#pay(app);
    else if (action === 'reset') app.resets.reset().catch(() => {});
    else this.#recover(app);
  }

  #pay(app: App): void {
    app.payments.pay('model').then(
      (tally) => this.#move(this.#checkTally(app, tally)),
      () => {},
    );
  }

  #recover(app: App): void {
    app.payments.recoverOnce().catch(() => {});
  }

  /** Checks that each invoice is paid, declined or refused if pay reported none as unknown or left. */
  async #checkTally(app: App, tally: Tally): Promise<void> {
    if (app.dead || tally.unknown > 0 || tally.left !== undefined) return;
    // After a reset, the tally does not describe the current invoices.
    if (this.#commands.some((command) => command.startsWith('reset'))) return;
    const { rows } = await this.#query(
      `SELECT FROM invoices WHERE paid_at IS NULL
       AND NOT EXISTS (
         SELECT FROM payment_events WHERE invoice_id = invoices.id AND kind IN ('declined', 'refused')
       )`,
    );
    if (rows.length > 0) this.#problems.push(`pay reported completion, but ${rows.length} invoices are left`);
  }

  #crash(replica: Replica): void {
    this.#kill(replica);
    const isApp = this.#apps.includes(replica as App);
    const start = async () => {
      await this.#hold(undefined, `start another ${replica.name}`, 'start');
      if (isApp) this.#apps[replica.slot] = this.#startApp(replica.slot);
      else this.#providers[replica.slot] = await this.#move(this.#startProvider(replica.slot));
    };
    start().catch((error: unknown) =>
      this.#problems.push(`${replica.name} was not replaced: ${String(error)}`),
    );
  }

  #kill(replica: Replica): void {
    if (replica.dead) return;
    replica.dead = true;
    for (const held of [...this.#waiting, ...this.#scheduled, ...this.#leaseWaiters, ...this.#heartbeats]) {
      if (held.owner === replica) held.fail(crashed());
    }
    const remains = (held: Held) => held.owner !== replica;
    this.#waiting = this.#waiting.filter(remains);
    this.#leaseWaiters = this.#leaseWaiters.filter(remains);
    this.#heartbeats = this.#heartbeats.filter(remains);
    const provider = this.#providers.find((each) => each === replica);
    if (provider === undefined) return;
    for (const request of this.#inFlight) {
      if (request.provider !== provider || request.at !== 'at the provider') continue;
      request.at = 'on its way back';
      this.#moving += 1;
    }
    for (const socket of provider.sockets) socket.resetAndDestroy();
    this.#sockets.delete(provider.running.port);
    const stopped = provider.running.stop();
    this.#close.unshift(() => stopped);
  }

  // ---- steps

  /** Returns the `step` function of one process. It waits for the scheduler and injects the fault. */
  #stepOf(replica: Replica): Step {
    return async (name, work) => {
      if (replica.dead) throw crashed();
      if (name === 'renew') this.#moving -= 1;
      replica.steps += 1;
      const label = `${replica.name}, step ${replica.steps}: ${name}`;
      const request = name === 'charge' ? this.#arrive() : undefined;
      const fault = await this.#hold(replica, label, name);
      if (fault === 'crash before') {
        this.#crash(replica);
        throw crashed();
      }
      if (['wait', 'wait to reset', 'heartbeat'].includes(name))
        return undefined as Awaited<ReturnType<typeof work>>;
      try {
        if (fault === 'lost') throw new DatabaseUnavailable(new Error('lost'));
        if (name === 'post') return await this.#post(replica, label, fault, work);
        // The work of `charge` consists of other steps, so it may wait for the scheduler.
        const result = await (name === 'charge' ? work() : this.#move(work()));
        if (name === 'release' || name === 'finish reset') this.#wake();
        if (fault === 'crash after') this.#crash(replica);
        if (replica.dead) throw crashed();
        if (fault === 'answer lost') throw new DatabaseUnavailable(new Error('answer lost'));
        return result;
      } finally {
        if (request !== undefined && !replica.dead && request.at === 'at the provider') {
          request.at = 'on its way back';
          this.#moving += 1;
        }
      }
    };
  }

  /** Sends a request, which stays in flight while other steps run. */
  async #post<T>(
    replica: Replica,
    label: string,
    fault: Fault | undefined,
    work: () => Promise<T>,
  ): Promise<T> {
    const request: Request = { at: 'on its way' };
    this.#inFlight.add(request);
    this.#sending = request;
    this.#moving += 1;
    const settled = (result: () => T) => {
      this.#inFlight.delete(request);
      if (request.at !== 'at the provider') this.#moving -= 1;
      request.at = 'done';
      return result;
    };
    const answer = work().then(
      (value) => settled(() => value),
      (error: unknown) =>
        settled(() => {
          throw error;
        }),
    );
    if (fault === 'crash after' || fault === 'answer lost') {
      // Waits until the request arrives or fails, but not for the response.
      await Promise.race([answer, this.#arrival(request)]);
      if (fault === 'crash after') this.#crash(replica);
      throw new Error('no answer in time');
    }
    const result = await answer;
    if (replica.dead) throw crashed();
    // The scheduler decides the order in which the responses to several requests arrive.
    const late = await this.#hold(replica, `${label}, the answer`, 'answer');
    if (late === 'crash before' || late === 'crash after') this.#crash(replica);
    if (replica.dead) throw crashed();
    if (late !== undefined) throw new Error('no answer in time');
    return result();
  }

  #sending: Request | undefined;
  #arrivals = new Map<Request, () => void>();

  #arrival(request: Request): Promise<void> {
    if (request.at !== 'on its way') return Promise.resolve();
    return new Promise((resolve) => this.#arrivals.set(request, resolve));
  }

  /** Notes that a request has arrived. Steps are released one at a time, so it is the request sent last. */
  #arrive(): Request | undefined {
    const request = this.#sending;
    if (request?.at !== 'on its way') return undefined;
    request.at = 'at the provider';
    this.#moving -= 1;
    this.#arrivals.get(request)?.();
    this.#arrivals.delete(request);
    return request;
  }

  /** Sends to the providers in turn, and to a dead one only if both are dead. */
  readonly #send: AxiosAdapter = (config) => {
    const isReset = config.url!.endsWith('/reset');
    const inTurn = [this.#posts % 2, (this.#posts + 1) % 2].map((slot) => this.#providers[slot]!);
    this.#posts += 1;
    const provider = inTurn.find(({ dead }) => !dead) ?? inTurn[0]!;
    const url = `http://127.0.0.1:${provider.running.port}${new URL(config.url!).pathname}`;
    if (isReset) return this.#http({ ...config, url, timeout: 0 });
    this.#sending!.provider = provider;
    const isKeyless = this.#plan.form === 'keyless';
    if (isKeyless) config.headers.delete('Idempotency-Key');
    return this.#http({ ...config, url, timeout: 0 }).then((response) => {
      if (isKeyless) delete response.headers['accept-idempotency-key'];
      return response;
    });
  };

  // ---- scheduling

  /** Counts the work as moving until it ends. */
  async #move<T>(work: Promise<T>): Promise<T> {
    this.#moving += 1;
    try {
      return await work;
    } finally {
      this.#moving -= 1;
    }
  }

  /** Waits until the scheduler releases the step. @returns the fault to inject */
  #hold(owner: Replica | undefined, label: string, name: string): Promise<Fault | undefined> {
    this.#holds += 1;
    return new Promise((go, fail) => {
      const held = { owner, label, name, go, fail };
      // A wait for a lease can only succeed once one is released or expires.
      if (name === 'wait' || name === 'wait to reset') this.#leaseWaiters.push(held);
      else if (name === 'heartbeat') this.#heartbeats.push(held);
      else this.#waiting.push(held);
    });
  }

  #wake(): void {
    this.#waiting.push(...this.#leaseWaiters.splice(0));
  }

  async #untilRest(): Promise<void> {
    for (let still = 0; still < 3; still += 1) {
      const before = this.#holds;
      await turn();
      if (this.#moving > 0 || before !== this.#holds) still = -1;
    }
  }

  /** Releases one step after the other until none is left. */
  async #untilQuiet(): Promise<void> {
    for (;;) {
      await this.#untilRest();
      if (this.#scheduler.count() === 0 && this.#waiting.length === 0 && this.#leaseWaiters.length > 0) {
        await this.#expireLeases();
        // A wait for a reset needs recovery, which each process runs periodically.
        const { rows } = await this.#query('SELECT FROM epoch WHERE resetting_at IS NOT NULL');
        const app = this.#apps.find(({ dead }) => !dead);
        if (rows.length > 0 && app !== undefined) this.#recover(app);
      }
      // Sorted, because steps that arrive at the same time come in no fixed order.
      for (const held of this.#waiting.splice(0).toSorted((a, b) => byNumber.compare(a.label, b.label))) {
        this.#scheduled.add(held);
        void this.#scheduler.schedule(Promise.resolve(), held.label).then(() => this.#release(held));
      }
      if (this.#scheduler.count() === 0) return;
      if (this.#released > maxSteps) throw new Error('this run does not end');
      await this.#scheduler.waitOne();
    }
  }

  #release(held: Held): void {
    this.#scheduled.delete(held);
    if (held.owner?.dead) return;
    this.#released += 1;
    const fault = held.owner && this.#faultOf(held);
    this.#trace.push(fault ? `${held.label} (${fault})` : held.label);
    held.go(fault);
  }

  #faultOf({ name }: Held): Fault | undefined {
    if (this.#isIn('silence') && name === 'post') return 'answer lost';
    return this.#plan.faults.find(({ at }) => at === this.#released)?.fault;
  }

  /** Returns whether the last released step lies in this range of the plan. */
  #isIn(range: 'silence' | 'readOnly'): boolean {
    const { from, steps } = this.#plan[range];
    return this.#released >= from && this.#released < from + steps;
  }
}
