import { setTimeout as sleep } from 'node:timers/promises';
import { hashSource } from '../src/source.ts';
import { Generation, type GenerationOptions } from './generation.ts';

/**
 * How long after a change the sources are looked at again, and how often, in milliseconds. Tilt gives files
 * times of whole seconds, by which nodemon tells changes: of two saves within a second it may miss the second.
 */
const lookAgain = { for: 3_000, every: 100 };
/** How long a request waits for a process that serves, in milliseconds. */
const patience = 10_000;
/** How long new code may take to be ready before the old is asked whether it is, in milliseconds. */
const slowStart = 3_000;
/** The least time between two starts of the same code, in milliseconds. */
const restartDelay = 1_000;
/** How long after a change the next process is prepared, in milliseconds: the first answers come first. */
const spareDelay = 100;

export interface ReloaderOptions extends GenerationOptions {
  say: (text: string) => void;
}

/**
 * Keeps a process running that has the code of the folder. After a change a new one starts beside the old, and
 * serves once it is ready; where the code does not start, the old one goes on serving.
 */
export class Reloader {
  readonly #options: ReloaderOptions;
  #serving: Generation | undefined;
  /** The one that starts. */
  #next: Generation | undefined;
  /** Has its packages loaded, and no code yet. */
  #spare: Generation | undefined;
  readonly #running = new Set<Generation>();
  /** The code that did not start: tried again when it changes. */
  #broken: string | undefined;
  #changedAt = 0;
  #changedFiles = new Set<string>();
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
  async serving(): Promise<Generation> {
    const end = performance.now() + patience;
    while (this.#serving === undefined) {
      const { service } = this.#options;
      if (this.#broken !== undefined && !this.#next)
        throw new Error(`${service} does not start, see its log`);
      const left = end - performance.now();
      if (left <= 0) throw new Error(`${service} has not started within ${patience / 1_000} s`);
      await Promise.race([this.#waiting.promise, sleep(left)]);
    }
    return this.#serving;
  }

  /** Looks at the sources, now and for a while. @param files the names of those that changed, to be said */
  changed(files: string[]): void {
    this.#changedAt = performance.now();
    for (const file of files) this.#changedFiles.add(file);
    this.#looking ??= setInterval(() => this.#look(), lookAgain.every);
    this.#look();
  }

  /** Ends all processes as a signal would. */
  async stop(): Promise<void> {
    this.#stopping = true;
    clearInterval(this.#looking);
    await Promise.all([...this.#running].map((generation) => generation.stop()));
  }

  #look(): void {
    if (performance.now() - this.#changedAt > lookAgain.for) {
      clearInterval(this.#looking);
      this.#looking = undefined;
    }
    const source = this.#hash();
    if (source === undefined || source === this.#next?.source) return;
    // What starts is out of date already.
    void this.#next?.stop();
    this.#next = undefined;
    if (source === this.#serving?.source) {
      this.#broken = undefined;
      this.#prepare();
    } else if (source !== this.#broken) void this.#load(source);
  }

  /** Undefined while a file is being replaced: the next look finds it. */
  #hash(): string | undefined {
    try {
      return hashSource(this.#options.root, this.#options.service);
    } catch {
      return undefined;
    }
  }

  async #load(source: string): Promise<void> {
    const next = this.#spare ?? this.#spawn();
    this.#spare = undefined;
    this.#next = next;
    next.load(source);
    const failure = await Promise.race([this.#mayServe(next), next.ended]);
    if (this.#stopping || this.#next !== next) return;
    if (this.#hash() !== source) {
      // It may have read one file as it was and another as it is.
      void next.stop();
      this.#next = undefined;
      this.changed([]);
      return;
    }
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
  async #mayServe(next: Generation): Promise<undefined> {
    await next.listening;
    let said = false;
    while (this.#next === next && this.#serving !== undefined) {
      const ready = await Promise.race([next.ready.then(() => true), sleep(slowStart, false)]);
      if (ready || !(await this.#serving.isReady())) return;
      if (!said) this.#say('is not ready with the new code; the old goes on serving until it is');
      said = true;
    }
  }

  #swap(next: Generation): void {
    const old = this.#serving;
    this.#serving = next;
    this.#broken = undefined;
    const ms = Math.round(performance.now() - next.loadedAt);
    const files = [...this.#changedFiles].join(', ');
    this.#changedFiles.clear();
    if (old) this.#say(`runs the new code after ${ms} ms${files && `: ${files}`}`);
    void old?.stop();
  }

  #giveUp(next: Generation, how: string): void {
    this.#broken = next.source;
    const then = this.#serving ? 'the last code that did goes on serving' : 'requests are answered with 503';
    this.#say(`did not start (${how}, why is above); ${then} until the next save`);
  }

  #spawn(): Generation {
    const generation = new Generation(this.#options);
    this.#running.add(generation);
    void generation.ended.then((how) => this.#ended(generation, how));
    return generation;
  }

  #ended(generation: Generation, how: string): void {
    this.#running.delete(generation);
    if (this.#spare === generation) this.#spare = undefined;
    if (this.#serving !== generation || this.#stopping) return;
    this.#serving = undefined;
    this.#say(`ended by itself (${how}, why is above) and is started again`);
    const wait = Math.max(0, generation.loadedAt + restartDelay - performance.now());
    setTimeout(() => this.changed([]), wait);
  }

  #say(text: string): void {
    this.#options.say(`${this.#options.service} ${text}`);
  }
}
