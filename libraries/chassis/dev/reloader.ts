import { setTimeout as sleep } from 'node:timers/promises';
import { readSources, sourceFolders, type Sources } from '../src/source.ts';
import { ServiceProcess, type ServiceProcessOptions } from './service-process.ts';

/**
 * How long after a change the sources are polled fast, and the interval, in milliseconds. nodemon may miss the later of
 * two saves in one second, because it compares file times and Tilt sets them in whole seconds. A poll finds it.
 */
const fastPoll = { for: 3_000, every: 100 };
/** The poll interval at other times, in milliseconds: no watcher sees everything. A poll takes 1 ms. */
const slowPollInterval = 1_000;
/** How long a watcher may take to report a change before it counts as blind, in milliseconds. */
const watcherDelay = 300;
/** How long sources must stay unchanged to count as completely written, in milliseconds: writers pause midway. */
const settleTime = 500;
/** How long a problem must last to be printed, in milliseconds: a checkout removes folders for a moment. */
const problemDelay = 400;
/** How long a request waits for a process that serves, in milliseconds. */
const servingTimeout = 10_000;
/** How long new code may take to start before a message reports it, in milliseconds. */
const slowStart = 1_500;
/** The minimum time between two starts of the same code, in milliseconds. */
const restartDelay = 1_000;
/**
 * How long after a start the old process exits and the next standby process starts, in milliseconds. Both take CPU, and
 * the first responses of the new code must not wait for them.
 */
const quietTime = 100;

export interface ReloaderOptions extends ServiceProcessOptions {
  say: (text: string) => void;
  /** Called when the watcher must be renewed: it missed a change, or a folder was replaced. */
  onMissed?: () => void;
}

/**
 * Keeps a process running with the code in the folder. After a change a new process starts beside the old one and
 * serves once it is ready. If the code does not start, the old process keeps serving.
 */
export class Reloader {
  readonly #options: ReloaderOptions;
  #serving: ServiceProcess | undefined;
  /** The process that is starting. */
  #next: ServiceProcess | undefined;
  /** The standby process: it has loaded packages, linked the sources as modules, and run none of them. */
  #standby: ServiceProcess | undefined;
  readonly #running = new Set<ServiceProcess>();
  /** The hash of the code that did not start. The next start waits for other code. */
  #broken: string | undefined;
  /** The sources as last read, and the time since when they are unchanged. */
  #seen: Sources = { hash: '', changedAt: 0, problems: [] };
  #seenSince = 0;
  /** Each problem with the time since when it exists; 0 once it is printed. */
  #problems = new Map<string, number>();
  /** Since when the sources are polled fast, in milliseconds of `performance.now()`. */
  #fastPollSince = 0;
  #reportedAt = 0;
  #changedFiles = new Set<string>();
  /** The processes with a slow start that was printed. */
  readonly #slow = new WeakSet<ServiceProcess>();
  #pollTimer: NodeJS.Timeout | undefined;
  #loadDone = Promise.withResolvers<void>();
  #stopping = false;

  constructor(options: ReloaderOptions) {
    this.#options = options;
  }

  start(): void {
    this.changed([]);
  }

  /** Waits for the process that serves. @throws {Error} if its code does not start, or not within `servingTimeout` */
  async serving(): Promise<ServiceProcess> {
    const end = performance.now() + servingTimeout;
    while (this.#serving === undefined) {
      const { service } = this.#options;
      // Includes the hash, so that the payment test can tell whether this is the code that it waits for.
      if (this.#broken !== undefined && !this.#next)
        throw new Error(`${service} does not start, see its log (source ${this.#broken})`);
      const left = end - performance.now();
      if (left <= 0) throw new Error(`${service} has not started within ${servingTimeout / 1_000} s`);
      await Promise.race([this.#loadDone.promise, sleep(left)]);
    }
    return this.#serving;
  }

  /** Polls the sources now and fast for a while. @param files the names of changed files, to be printed */
  changed(files: string[]): void {
    this.#reportedAt = performance.now();
    for (const file of files) this.#changedFiles.add(file);
    this.#pollNow();
  }

  /** Stops all processes as SIGTERM would. */
  async stop(): Promise<void> {
    this.#stopping = true;
    clearTimeout(this.#pollTimer);
    await Promise.all([...this.#running].map((serviceProcess) => serviceProcess.stop()));
  }

  #pollNow(): void {
    this.#fastPollSince = performance.now();
    this.#poll();
  }

  #poll(): void {
    if (this.#stopping) return;
    clearTimeout(this.#pollTimer);
    this.#compare(this.#read());
    const isRecent = performance.now() - this.#fastPollSince < fastPoll.for;
    this.#pollTimer = setTimeout(() => this.#poll(), isRecent ? fastPoll.every : slowPollInterval);
  }

  /** Reads the sources and notes the time if they have changed. */
  #read(): Sources {
    const sources = readSources(this.#options.root, this.#options.service);
    const now = performance.now();
    const { hash, changedAt } = this.#seen;
    if (sources.hash !== hash || sources.changedAt !== changedAt) {
      if (now - this.#fastPollSince >= fastPoll.for) this.#checkWatcher(now);
      this.#seenSince = now;
    }
    this.#seen = sources;
    this.#printProblems(sources.problems, now);
    return sources;
  }

  #compare({ hash: source }: Sources): void {
    if (source === this.#next?.source) return;
    const abandoned = this.#next;
    // The starting process already has outdated code.
    void abandoned?.stop();
    this.#next = undefined;
    if (source === this.#serving?.source) {
      if (this.#broken !== undefined) this.#say('runs the previous code again');
      this.#setBroken(undefined);
      this.#changedFiles.clear();
      if (abandoned) this.#prepareStandby();
    } else if (source !== this.#broken) void this.#load(source);
  }

  /** Handles a change that a poll found. If no report follows, the watcher does not see the folder any more. */
  #checkWatcher(at: number): void {
    this.#fastPollSince = at;
    setTimeout(() => {
      if (!this.#stopping && this.#reportedAt < at) this.#options.onMissed?.();
    }, watcherDelay);
  }

  /** Prints each problem once, and again if it comes back. */
  #printProblems(problems: string[], now: number): void {
    const before = this.#problems;
    this.#problems = new Map(problems.map((problem) => [problem, before.get(problem) ?? now]));
    for (const [problem, since] of this.#problems) {
      if (since === now) this.#fastPollSince = now;
      if (since === 0 || now - since < problemDelay) continue;
      this.#options.say(`${this.#options.service}: ${problem}`);
      this.#problems.set(problem, 0);
    }
    // A folder whose problem is gone may be a new one, which the watcher does not watch.
    const folders = sourceFolders(this.#options.service);
    const isGone = (problem: string) =>
      !this.#problems.has(problem) && folders.some((each) => problem.startsWith(`${each} `));
    if ([...before.keys()].some(isGone)) this.#options.onMissed?.();
  }

  async #load(source: string): Promise<void> {
    const { changedAt } = this.#seen;
    const next = this.#standby ?? this.#spawn();
    this.#standby = undefined;
    this.#next = next;
    next.load(source);
    const failure = await Promise.race([this.#untilMayServe(next), next.exited]);
    if (failure !== undefined) await Promise.all([this.#settle(next), next.stderrEnd()]);
    if (this.#stopping || this.#next !== next) return;
    const now = this.#read();
    // The process may have read some files before a change and others after it. A failed one may also have read a file
    // that was only partly written.
    if (now.hash !== source || (failure !== undefined && now.changedAt !== changedAt)) {
      void next.stop();
      this.#next = undefined;
      this.#pollNow();
      return;
    }
    next.forwardStderr();
    this.#next = undefined;
    if (failure === undefined) this.#swap(next);
    else this.#giveUp(next, failure);
    this.#loadDone.resolve();
    this.#loadDone = Promise.withResolvers();
    this.#prepareStandby();
  }

  #prepareStandby(): void {
    setTimeout(() => {
      if (!this.#stopping) this.#standby ??= this.#spawn();
    }, quietTime);
  }

  /** Waits until `next` listens, if no process serves; else until it is ready, or the serving one is not ready. */
  async #untilMayServe(next: ServiceProcess): Promise<undefined> {
    const isListening = next.listening.then(() => true);
    // If no process serves, requests wait, and the first start takes longer.
    const bound = this.#serving ? slowStart : servingTimeout;
    while (!(await Promise.race([isListening, sleep(bound, false)]))) {
      if (this.#next !== next) return;
      this.#printSlow(next, 'does not answer yet with the new code');
    }
    while (this.#next === next && this.#serving !== undefined) {
      const ready = await Promise.race([next.ready.then(() => true), sleep(slowStart, false)]);
      if (ready || !(await this.#serving.isReady())) return;
      this.#printSlow(next, 'is not ready with the new code. The previous code keeps serving until it is.');
    }
  }

  /** Resolves once the sources have been unchanged for `settleTime`, or another process starts. */
  async #settle(next: ServiceProcess): Promise<void> {
    for (;;) {
      const left = this.#seenSince + settleTime - performance.now();
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
    setTimeout(() => void old?.stop(), quietTime);
  }

  #giveUp(next: ServiceProcess, how: string): void {
    this.#setBroken(next.source);
    const then = this.#serving ? 'The previous code keeps serving' : 'Requests are answered with 503';
    this.#say(`did not start (${how}, see the error above). ${then} until the next save.`);
  }

  #setBroken(source: string | undefined): void {
    if (source === this.#broken) return;
    this.#broken = source;
    this.#serving?.tellFailed(source);
  }

  #spawn(): ServiceProcess {
    const serviceProcess = new ServiceProcess(this.#options);
    this.#running.add(serviceProcess);
    void serviceProcess.exited.then((how) => this.#onExit(serviceProcess, how));
    return serviceProcess;
  }

  #onExit(serviceProcess: ServiceProcess, how: string): void {
    this.#running.delete(serviceProcess);
    if (this.#standby === serviceProcess) this.#standby = undefined;
    if (this.#serving !== serviceProcess || this.#stopping) return;
    this.#serving = undefined;
    this.#say(`exited unexpectedly (${how}, see the log above) and is restarted`);
    const wait = Math.max(0, serviceProcess.loadedAt + restartDelay - performance.now());
    setTimeout(() => this.changed([]), wait);
  }

  #printSlow(serviceProcess: ServiceProcess, text: string): void {
    if (this.#slow.has(serviceProcess)) return;
    this.#slow.add(serviceProcess);
    serviceProcess.forwardStderr();
    this.#say(text);
  }

  #say(text: string): void {
    this.#options.say(`${this.#options.service} ${text}`);
  }
}
