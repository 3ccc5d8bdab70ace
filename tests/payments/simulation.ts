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

/** What can happen to one step. */
export const mishaps = [
  /** The process dies before the call. */
  'crash before',
  /** The process dies when the call has taken effect; of a request: when it has arrived. */
  'crash after',
  /** The call fails, and nothing came of it. */
  'lost',
  /** The call takes effect, or will yet, and its caller is told that it failed. */
  'answer lost',
] as const;
export type Mishap = (typeof mishaps)[number];

/** What is asked for from outside, at moments of the scheduler's choice. */
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

/** How the provider is asked: for arrays, for one payment at a time, or so by one that ignores keys. */
export const forms = ['array', 'single', 'keyless'] as const;
export type Form = (typeof forms)[number];

export interface Plan {
  /** The ids of the invoices follow on this one: which of them are declined, and when, comes from their ids. */
  firstId: number;
  form: Form;
  commands: Command[];
  /** What happens to the n-th step that the scheduler lets through. */
  mishaps: { at: number; what: Mishap }[];
  /** From which step on, and for how many, no request to the provider is answered: more than all that ask again. */
  silence: { from: number; steps: number };
  /** From which step on, and for how many, Postgres takes only reads from invoice-app, as a standby does. */
  readOnly: { from: number; steps: number };
}

const invoices = 6;
const perBatch = 2;
/** A database that takes only reads while `isReadOnly` says so, as after a failover to a standby. */
class FailingOver extends Database {
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

/** The place of the invoice that the provider refuses: it has the amount 0. */
const refused = 3;
/** The provider declines this share of the charges. */
const failureRate = '0.15';
/** More steps than any run takes; one that takes more goes round in circles. */
const mostSteps = 5_000;
/** Runs of pay until nothing is unpaid: each leaves only what was declined. */
const mostPays = 40;

/** A process, as far as the simulation needs one: what it does goes on until it is dead. */
interface Replica {
  name: string;
  /** Its place among those of its kind. */
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

/** A step that waits to be let through. */
interface Held {
  label: string;
  owner: Replica | undefined;
  name: string;
  go: (mishap: Mishap | undefined) => void;
  stop: (error: Error) => void;
}

/** A request to the provider, from when it is sent to its answer. */
interface Request {
  /** Where it is: `there` is at the provider, in the hands of some step; otherwise it moves. */
  at: 'on its way' | 'there' | 'on its way back' | 'done';
  provider?: ProviderReplica;
}

/** Statements that make the data of a run, whether or not triggers are at work. */
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
 * Two replicas of each service in this process, on a real Postgres, with real HTTP between them; each step of a
 * payment waits until the scheduler lets it through, and everything has come to rest before the next one is.
 * What can be seen of a run so follows from its plan and its schedule alone.
 *
 * At rest means that each request, statement and timer that was begun has led to a step that waits or to an end:
 * `#moving` counts those that have not. The rest happens within a turn or two of the event loop.
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

  // Of the run at hand.
  #scheduler!: Scheduler;
  #plan!: Plan;
  #commands: Command[] = [];
  #waiting: Held[] = [];
  #scheduled = new Set<Held>();
  #patient: Held[] = [];
  #heartbeats: Held[] = [];
  #moving = 0;
  #came = 0;
  #let = 0;
  #posts = 0;
  #underWay = new Set<Request>();
  #trace: string[] = [];
  #wrong: string[] = [];

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
    // The one way to the connections of a server that somebody else has made.
    subscribe('http.server.request.start', (message) => {
      const { server, socket } = message as { server: Server; socket: Socket };
      this.#sockets.get((server.address() as AddressInfo | null)?.port ?? -1)?.add(socket);
    });
  }

  /** @param postgresUrl the superuser's */
  static async start(postgresUrl: string): Promise<Simulation> {
    const [own, other] = [await createDatabase(postgresUrl), await createDatabase(postgresUrl)];
    const open = async (url: string) => {
      const { pathname } = new URL(url);
      const client = new Client({ connectionString: new URL(pathname, postgresUrl).href });
      await client.connect();
      // Nothing here outlives Postgres, and runs are made anew past the trigger that keeps the history.
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
        new FailingOver({ url: own.url, migrations, log, service: 'invoice-app' }, () =>
          simulation.#is('readOnly'),
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

  /** Makes providers that have decided nothing yet, so that the same plan can be run again. */
  async restartProviders(): Promise<void> {
    this.#starts.clear();
    for (const provider of this.#providers) this.#kill(provider);
    this.#providers = [await this.#startProvider(0), await this.#startProvider(1)];
  }

  /** The steps of the last run in the order in which they were let through. */
  get trace(): readonly string[] {
    return this.#trace;
  }

  /** Runs a plan to its end, and then lets recovery and pay finish. @returns what was wrong, empty if nothing */
  async run(scheduler: Scheduler, plan: Plan): Promise<string[]> {
    this.#scheduler = scheduler;
    this.#plan = plan;
    this.#commands = plan.commands;
    this.#trace = [];
    this.#wrong = [];
    this.#let = 0;
    this.#posts = 0;
    this.#starts.clear();
    this.#heartbeats = [];
    for (const provider of this.#providers) {
      // These have outlived earlier runs, of which nothing may show.
      Object.assign(provider, this.#createReplica('provider', provider.slot));
    }
    await this.#makeData(plan.firstId);
    this.#apps = [this.#startApp(0), this.#startApp(1)];
    for (const [index, command] of plan.commands.entries()) {
      this.#hold(undefined, `command ${index}: ${command}`, command).then(
        () => this.#obey(command),
        () => {},
      );
    }
    await this.#untilQuiet();

    const before = await takeSnapshot(this.#sessions.app);
    const never = { from: 0, steps: 0 };
    this.#plan = { ...plan, mishaps: [], silence: never, readOnly: never };
    await this.#expireLeases();
    this.#recover(this.#apps[0]!);
    await this.#untilQuiet();
    const broken = () => brokenRules(this.#sessions, before, plan.form !== 'keyless');
    this.#wrong.push(...(await broken()).map((line) => `after recovery, ${line}`));
    for (let pays = 0; (await this.#countUnpaid()) > 0 && pays < mostPays; pays += 1) {
      this.#pay(this.#apps[pays % 2]!);
      await this.#untilQuiet();
    }
    this.#wrong.push(...(await broken()));
    const unpaid = await this.#countUnpaid();
    if (unpaid > 0) this.#wrong.push(`${unpaid} invoices are still unpaid`);
    for (const app of this.#apps) app.dead = true;
    return this.#wrong;
  }

  // ---- the world

  async #makeData(firstId: number): Promise<void> {
    const { app, provider } = this.#sessions;
    await provider.query('DELETE FROM payments');
    await app.query('DELETE FROM payment_events; DELETE FROM invoices; UPDATE epoch SET resetting_at = NULL');
    for (const statement of dataOf(firstId)) await app.query(statement);
  }

  async #countUnpaid(): Promise<number> {
    // Neither refused nor unsettled, which wait for a person.
    const { rows } = await this.#ask(
      'SELECT FROM invoices WHERE paid_at IS NULL AND refused_at IS NULL AND unknown_at IS NULL',
    );
    return rows.length;
  }

  /** One statement after the other, as a session takes them. */
  #ask(text: string) {
    const answer = this.#asked.then(() => this.#sessions.app.query(text));
    this.#asked = answer;
    return answer;
  }

  #asked: Promise<unknown> = Promise.resolve();

  /** Time passes: not by waiting for it. */
  async #expireLeases(): Promise<void> {
    await this.#ask(
      `UPDATE batches SET leased_until = now() - interval '1 ms' WHERE leased_until < now() + interval '1 min'`,
    );
    await this.#ask(
      `UPDATE epoch SET resetting_at = now() - interval '1 min' WHERE resetting_at IS NOT NULL`,
    );
    this.#wake();
  }

  /** For Postgres, what it has written lies further in the future than it did. */
  async #setClockBack(): Promise<void> {
    await this.#ask(`UPDATE batches SET leased_until = leased_until + interval '1 h'`);
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
    // Each retry is a movement that ends at the step that it begins with.
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

  // ---- what happens to it

  #obey(command: Command): void | Promise<void> {
    if (command === 'leases run out') return this.#move(this.#expireLeases());
    if (command === 'clock goes back') return this.#move(this.#setClockBack());
    if (command === 'heartbeats') {
      this.#waiting.push(...this.#heartbeats.splice(0));
      return;
    }
    const [what, slot] = command.split(' ');
    const app = this.#apps[Number(slot)]!;
    if (app.dead) return;
    if (what === 'pay') this.#pay(app);
    else if (what === 'reset') app.resets.reset().catch(() => {});
    else this.#recover(app);
  }

  #pay(app: App): void {
    app.payments.pay('model').then(
      (tally) => this.#move(this.#checkAnswer(app, tally)),
      () => {},
    );
  }

  #recover(app: App): void {
    app.payments.recoverOnce().catch(() => {});
  }

  /** A caller who is told that nothing is unknown or left finds each invoice paid, declined or refused. */
  async #checkAnswer(app: App, tally: Tally): Promise<void> {
    if (app.dead || tally.unknown > 0 || tally.left !== undefined) return;
    // After a reset it says nothing of the invoices that are there.
    if (this.#commands.some((command) => command.startsWith('reset'))) return;
    const { rows } = await this.#ask(
      `SELECT FROM invoices WHERE paid_at IS NULL
       AND NOT EXISTS (
         SELECT FROM payment_events WHERE invoice_id = invoices.id AND kind IN ('declined', 'refused')
       )`,
    );
    if (rows.length > 0) this.#wrong.push(`pay was answered as done, with ${rows.length} invoices left`);
  }

  #crash(replica: Replica): void {
    this.#kill(replica);
    const isApp = this.#apps.includes(replica as App);
    const start = async () => {
      await this.#hold(undefined, `start another ${replica.name}`, 'start');
      if (isApp) this.#apps[replica.slot] = this.#startApp(replica.slot);
      else this.#providers[replica.slot] = await this.#move(this.#startProvider(replica.slot));
    };
    start().catch((error: unknown) => this.#wrong.push(`no other ${replica.name}: ${String(error)}`));
  }

  #kill(replica: Replica): void {
    if (replica.dead) return;
    replica.dead = true;
    for (const held of [...this.#waiting, ...this.#scheduled, ...this.#patient, ...this.#heartbeats]) {
      if (held.owner === replica) held.stop(crashed());
    }
    const remains = (held: Held) => held.owner !== replica;
    this.#waiting = this.#waiting.filter(remains);
    this.#patient = this.#patient.filter(remains);
    this.#heartbeats = this.#heartbeats.filter(remains);
    const provider = this.#providers.find((each) => each === replica);
    if (provider === undefined) return;
    for (const request of this.#underWay) {
      if (request.provider !== provider || request.at !== 'there') continue;
      request.at = 'on its way back';
      this.#moving += 1;
    }
    for (const socket of provider.sockets) socket.resetAndDestroy();
    this.#sockets.delete(provider.running.port);
    const stopped = provider.running.stop();
    this.#close.unshift(() => stopped);
  }

  // ---- steps

  /** The steps of one process. */
  #stepOf(replica: Replica): Step {
    return async (name, work) => {
      if (replica.dead) throw crashed();
      if (name === 'renew') this.#moving -= 1;
      replica.steps += 1;
      const label = `${replica.name}, step ${replica.steps}: ${name}`;
      const arrived = name === 'charge' ? this.#arrive() : undefined;
      const mishap = await this.#hold(replica, label, name);
      if (mishap === 'crash before') {
        this.#crash(replica);
        throw crashed();
      }
      if (['wait', 'wait to reset', 'heartbeat'].includes(name))
        return undefined as Awaited<ReturnType<typeof work>>;
      try {
        if (mishap === 'lost') throw new DatabaseUnavailable(new Error('lost'));
        if (name === 'post') return await this.#post(replica, label, mishap, work);
        // The work of this step is made of other steps, so it may take any time.
        const result = await (name === 'charge' ? work() : this.#move(work()));
        if (name === 'release' || name === 'finish reset') this.#wake();
        if (mishap === 'crash after') this.#crash(replica);
        if (replica.dead) throw crashed();
        if (mishap === 'answer lost') throw new DatabaseUnavailable(new Error('answer lost'));
        return result;
      } finally {
        if (arrived !== undefined && !replica.dead && arrived.at === 'there') {
          arrived.at = 'on its way back';
          this.#moving += 1;
        }
      }
    };
  }

  /** A request, which is under way for as long as other steps take. */
  async #post<T>(
    replica: Replica,
    label: string,
    mishap: Mishap | undefined,
    work: () => Promise<T>,
  ): Promise<T> {
    const request: Request = { at: 'on its way' };
    this.#underWay.add(request);
    this.#sending = request;
    this.#moving += 1;
    const settled = (result: () => T) => {
      this.#underWay.delete(request);
      if (request.at !== 'there') this.#moving -= 1;
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
    if (mishap === 'crash after' || mishap === 'answer lost') {
      // It arrives, or fails to; what becomes of it there nobody waits for.
      await Promise.race([answer, this.#arrival(request)]);
      if (mishap === 'crash after') this.#crash(replica);
      throw new Error('no answer in time');
    }
    const result = await answer;
    if (replica.dead) throw crashed();
    // Answers to several requests may come in any order: each is taken when the scheduler says so.
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

  /** A request has arrived: as one step is let through at a time, it is the one that was sent last. */
  #arrive(): Request | undefined {
    const request = this.#sending;
    if (request?.at !== 'on its way') return undefined;
    request.at = 'there';
    this.#moving -= 1;
    this.#arrivals.get(request)?.();
    this.#arrivals.delete(request);
    return request;
  }

  /** Sends to one provider after the other; to one that is down only where both are. */
  readonly #send: AxiosAdapter = (config) => {
    const isReset = config.url!.endsWith('/reset');
    const turns = [this.#posts % 2, (this.#posts + 1) % 2].map((slot) => this.#providers[slot]!);
    this.#posts += 1;
    const provider = turns.find(({ dead }) => !dead) ?? turns[0]!;
    const url = `http://127.0.0.1:${provider.running.port}${new URL(config.url!).pathname}`;
    if (isReset) return this.#http({ ...config, url, timeout: 0 });
    this.#sending!.provider = provider;
    const isKeyless = this.#plan.form === 'keyless';
    if (isKeyless) config.headers.delete('Idempotency-Key');
    return this.#http({ ...config, url, timeout: 0 }).then((answer) => {
      if (isKeyless) delete answer.headers['accept-idempotency-key'];
      return answer;
    });
  };

  // ---- order

  /** Counts as a movement for as long as it takes. */
  async #move<T>(work: Promise<T>): Promise<T> {
    this.#moving += 1;
    try {
      return await work;
    } finally {
      this.#moving -= 1;
    }
  }

  /** Waits to be let through; the answer is what is to happen then. */
  #hold(owner: Replica | undefined, label: string, name: string): Promise<Mishap | undefined> {
    this.#came += 1;
    return new Promise((go, stop) => {
      const held = { owner, label, name, go, stop };
      // Nothing has changed for those that wait for a lease until one is given back, or runs out.
      if (name === 'wait' || name === 'wait to reset') this.#patient.push(held);
      else if (name === 'heartbeat') this.#heartbeats.push(held);
      else this.#waiting.push(held);
    });
  }

  #wake(): void {
    this.#waiting.push(...this.#patient.splice(0));
  }

  async #untilRest(): Promise<void> {
    for (let still = 0; still < 3; still += 1) {
      const came = this.#came;
      await turn();
      if (this.#moving > 0 || came !== this.#came) still = -1;
    }
  }

  /** Lets one step after the other through until there is none. */
  async #untilQuiet(): Promise<void> {
    for (;;) {
      await this.#untilRest();
      if (this.#scheduler.count() === 0 && this.#waiting.length === 0 && this.#patient.length > 0) {
        await this.#expireLeases();
        // What waits for a reset waits for recovery, which each process does now and then.
        const { rows } = await this.#ask('SELECT FROM epoch WHERE resetting_at IS NOT NULL');
        const app = this.#apps.find(({ dead }) => !dead);
        if (rows.length > 0 && app !== undefined) this.#recover(app);
      }
      // In an order of their own: several may have come at once.
      for (const held of this.#waiting.splice(0).toSorted((a, b) => byNumber.compare(a.label, b.label))) {
        this.#scheduled.add(held);
        void this.#scheduler.schedule(Promise.resolve(), held.label).then(() => this.#letThrough(held));
      }
      if (this.#scheduler.count() === 0) return;
      if (this.#let > mostSteps) throw new Error('this run does not end');
      await this.#scheduler.waitOne();
    }
  }

  #letThrough(held: Held): void {
    this.#scheduled.delete(held);
    if (held.owner?.dead) return;
    this.#let += 1;
    const mishap = held.owner && this.#mishapOf(held);
    this.#trace.push(mishap ? `${held.label} (${mishap})` : held.label);
    held.go(mishap);
  }

  #mishapOf({ name }: Held): Mishap | undefined {
    if (this.#is('silence') && name === 'post') return 'answer lost';
    return this.#plan.mishaps.find(({ at }) => at === this.#let)?.what;
  }

  /** Whether the plan has the step that was let through last within this span. */
  #is(span: 'silence' | 'readOnly'): boolean {
    const { from, steps } = this.#plan[span];
    return this.#let >= from && this.#let < from + steps;
  }
}
