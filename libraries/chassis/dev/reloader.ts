import { setTimeout as sleep } from 'node:timers/promises';
import { readSources, sourceFolders, type Sources } from '../src/source.ts';
import { ServiceProcess, type ServiceProcessOptions } from './service-process.ts';

/**
 * How long after a change the sources are looked at again, and how often, in milliseconds. Tilt gives files
 * times of whole seconds, by which nodemon tells changes: of two saves within a second it may miss the second.
 */
const lookAgain = { for: 3_000, every: 100 };
/** How often they are looked at without one, in milliseconds: no watcher sees everything. Takes 1 ms. */
const lookAnyway = 1_000;
/** How long a watcher may take to tell of a change, in milliseconds, before it counts as blind. */
const watcherDelay = 300;
/** How long sources stay the same before they count as whole, in milliseconds: writers pause within a file. */
const settled = 500;
/** How long a problem lasts before it is said, in milliseconds: a checkout takes folders away for a moment. */
const lasting = 400;
/** How long a request waits for a process that serves, in milliseconds. */
const patience = 10_000;
/** How long new code may take before that is said, in milliseconds. */
const slowStart = 1_500;
/** The least time between two starts of the same code, in milliseconds. */
const restartDelay = 1_000;
/** How long after a change the next process is prepared, in milliseconds: the first answers come first. */
const spareDelay = 100;

export interface ReloaderOptions extends ServiceProcessOptions {
  say: (text: string) => void;
  /** Called where sources changed and nobody told: a watcher does not see them any more. */
  onMissed?: () => void;
}

/**
 * Keeps a process running that has the code of the folder. After a change a new one starts beside the old, and
 * serves once it is ready; where the code does not start, the old one goes on serving.
 */
export class Reloader {
  readonly #options: ReloaderOptions;
  #serving: ServiceProcess | undefined;
  /** The one that starts. */
  #next: ServiceProcess | undefined;
  /** Has its packages loaded and its sources linked, and has run none of them. */
  #spare: ServiceProcess | undefined;
  readonly #running = new Set<ServiceProcess>();
  /** The code that did not start: tried again when it changes. */
  #broken: string | undefined;
  /** The sources as they were seen last, and since when. */
  #seen: Sources = { hash: '', changedAt: 0, problems: [] };
  #seenSince = 0;
  /** What is wrong with entries, and since when; 0 once it was said. */
  #problems = new Map<string, number>();
  #changedAt = 0;
  #toldAt = 0;
  #changedFiles = new Set<string>();
  /** Those whose slow start was said. */
  readonly #slow = new WeakSet<ServiceProcess>();
  #looking: NodeJS.Timeout | undefined;
  #waiting = Promise.withResolvers<void>();
  #stopping = false;

  constructor(options: ReloaderOptions) {
    this.#options = options;
  }

  start(): void {
    this.changed([]);
  }

  /** The process that serves; waited for where one starts. @throws {Error} when none will, or not soon */
  async serving(): Promise<ServiceProcess> {
    const end = performance.now() + patience;
    while (this.#serving === undefined) {
      const { service } = this.#options;
      // With its hash, by which the payment test knows that it is the code that it waits for.
      if (this.#broken !== undefined && !this.#next)
        throw new Error(`${service} does not start, see its log (source ${this.#broken})`);
      const left = end - performance.now();
      if (left <= 0) throw new Error(`${service} has not started within ${patience / 1_000} s`);
      await Promise.race([this.#waiting.promise, sleep(left)]);
    }
    return this.#serving;
  }

  /** Looks at the sources, now and for a while. @param files the names of those that changed, to be said */
  changed(files: string[]): void {
    this.#toldAt = performance.now();
    for (const file of files) this.#changedFiles.add(file);
    this.#lookNow();
  }

  /** Ends all processes as a signal would. */
  async stop(): Promise<void> {
    this.#stopping = true;
    clearTimeout(this.#looking);
    await Promise.all([...this.#running].map((generation) => generation.stop()));
  }

  #lookNow(): void {
    this.#changedAt = performance.now();
    this.#look();
  }

  #look(): void {
    if (this.#stopping) return;
    clearTimeout(this.#looking);
    this.#lookAt(this.#read());
    const isRecent = performance.now() - this.#changedAt < lookAgain.for;
    this.#looking = setTimeout(() => this.#look(), isRecent ? lookAgain.every : lookAnyway);
  }

  /** The sources as they are; notes since when they are so. */
  #read(): Sources {
    const sources = readSources(this.#options.root, this.#options.service);
    const now = performance.now();
    const { hash, changedAt } = this.#seen;
    if (sources.hash !== hash || sources.changedAt !== changedAt) {
      if (now - this.#changedAt >= lookAgain.for) this.#missed(now);
      this.#seenSince = now;
    }
    this.#seen = sources;
    this.#sayProblems(sources.problems, now);
    return sources;
  }

  #lookAt({ hash: source }: Sources): void {
    if (source === this.#next?.source) return;
    const abandoned = this.#next;
    // What starts is out of date already.
    void abandoned?.stop();
    this.#next = undefined;
    if (source === this.#serving?.source) {
      if (this.#broken !== undefined) this.#say('runs the former code again');
      this.#setBroken(undefined);
      this.#changedFiles.clear();
      if (abandoned) this.#prepare();
    } else if (source !== this.#broken) void this.#load(source);
  }

  /** Nobody told of a change that a look found: unless somebody does yet, nobody sees this folder. */
  #missed(at: number): void {
    this.#changedAt = at;
    setTimeout(() => {
      if (!this.#stopping && this.#toldAt < at) this.#options.onMissed?.();
    }, watcherDelay);
  }

  /** Each once, until it is gone and comes back. */
  #sayProblems(problems: string[], now: number): void {
    const before = this.#problems;
    this.#problems = new Map(problems.map((problem) => [problem, before.get(problem) ?? now]));
    for (const [problem, since] of this.#problems) {
      if (since === now) this.#changedAt = now;
      if (since === 0 || now - since < lasting) continue;
      this.#options.say(`${this.#options.service}: ${problem}`);
      this.#problems.set(problem, 0);
    }
    // A folder that is back is another folder, which a watcher does not know.
    const folders = sourceFolders(this.#options.service);
    const isBack = (problem: string) =>
      !this.#problems.has(problem) && folders.some((each) => problem.startsWith(`${each} `));
    if ([...before.keys()].some(isBack)) this.#options.onMissed?.();
  }

  async #load(source: string): Promise<void> {
    const { changedAt } = this.#seen;
    const next = this.#spare ?? this.#spawn();
    this.#spare = undefined;
    this.#next = next;
    next.load(source);
    const failure = await Promise.race([this.#mayServe(next), next.ended]);
    if (failure !== undefined) await Promise.all([this.#settle(next), next.lastWords()]);
    if (this.#stopping || this.#next !== next) return;
    const now = this.#read();
    // It may have read one file as it was and another as it is; where it failed, also one that was only begun.
    if (now.hash !== source || (failure !== undefined && now.changedAt !== changedAt)) {
      void next.stop();
      this.#next = undefined;
      this.#lookNow();
      return;
    }
    next.reveal();
    this.#next = undefined;
    if (failure === undefined) this.#swap(next);
    else this.#giveUp(next, failure);
    this.#waiting.resolve();
    this.#waiting = Promise.withResolvers();
    this.#prepare();
  }

  #prepare(): void {
    setTimeout(() => {
      if (!this.#stopping) this.#spare ??= this.#spawn();
    }, spareDelay);
  }

  /** Resolves when it may serve: at once where nothing else does, else once it is ready, or nothing is. */
  async #mayServe(next: ServiceProcess): Promise<undefined> {
    const isListening = next.listening.then(() => true);
    // The first start takes its time, and is waited for.
    const bound = this.#serving ? slowStart : patience;
    while (!(await Promise.race([isListening, sleep(bound, false)]))) {
      if (this.#next !== next) return;
      this.#saySlow(next, 'does not answer yet with the new code');
    }
    while (this.#next === next && this.#serving !== undefined) {
      const ready = await Promise.race([next.ready.then(() => true), sleep(slowStart, false)]);
      if (ready || !(await this.#serving.isReady())) return;
      this.#saySlow(next, 'is not ready with the new code; the old goes on serving until it is');
    }
  }

  /** Resolves when the sources have stayed as they are for a while, or something else starts. */
  async #settle(next: ServiceProcess): Promise<void> {
    for (;;) {
      const left = this.#seenSince + settled - performance.now();
      if (left <= 0 || this.#next !== next || this.#stopping) return;
      await sleep(left);
      if (this.#next === next) this.#read();
    }
  }

  #swap(next: ServiceProcess): void {
    const old = this.#serving;
    this.#serving = next;
    this.#setBroken(undefined);
    const ms = Math.round(performance.now() - next.loadedAt);
    const files = [...this.#changedFiles].join(', ');
    this.#changedFiles.clear();
    if (old) this.#say(`runs the new code after ${ms} ms${files && `: ${files}`}`);
    void old?.stop();
  }

  #giveUp(next: ServiceProcess, how: string): void {
    this.#setBroken(next.source);
    const then = this.#serving ? 'the last code that did goes on serving' : 'requests are answered with 503';
    this.#say(`did not start (${how}, why is above); ${then} until the next save`);
  }

  #setBroken(source: string | undefined): void {
    if (source === this.#broken) return;
    this.#broken = source;
    this.#serving?.tellFailed(source);
  }

  #spawn(): ServiceProcess {
    const generation = new ServiceProcess(this.#options);
    this.#running.add(generation);
    void generation.ended.then((how) => this.#ended(generation, how));
    return generation;
  }

  #ended(generation: ServiceProcess, how: string): void {
    this.#running.delete(generation);
    if (this.#spare === generation) this.#spare = undefined;
    if (this.#serving !== generation || this.#stopping) return;
    this.#serving = undefined;
    this.#say(`ended by itself (${how}, why is above) and is started again`);
    const wait = Math.max(0, generation.loadedAt + restartDelay - performance.now());
    setTimeout(() => this.changed([]), wait);
  }

  #saySlow(generation: ServiceProcess, text: string): void {
    if (this.#slow.has(generation)) return;
    this.#slow.add(generation);
    generation.reveal();
    this.#say(text);
  }

  #say(text: string): void {
    this.#options.say(`${this.#options.service} ${text}`);
  }
}
