// Requests that a user would notice failing, all the while that code is saved.
import { Agent } from 'node:http';
import { bodyOf } from './clock.ts';

/** In milliseconds. */
const every = { get: 50, pay: 200 };
/** How long an answer may take, in milliseconds. */
const patience = 10_000;

/** Sends requests at a steady rate, each other one over a connection of its own, and counts those that fail. */
export class Trickle {
  /** Whether payments are among them; else invoices are read only. */
  pays = false;
  sent = 0;
  failed = 0;
  /** How often which failure. */
  readonly failures = new Map<string, number>();
  readonly #url: string;
  readonly #onFailure: (what: string) => void;
  readonly #agent = new Agent({ keepAlive: true });
  readonly #timers: NodeJS.Timeout[];
  readonly #open = new Set<Promise<unknown>>();

  /** @param onFailure is told of the first failure of each kind */
  constructor(url: string, onFailure: (what: string) => void) {
    this.#url = url;
    this.#onFailure = onFailure;
    this.#timers = [
      setInterval(() => this.#send('GET', '/invoices?limit=1'), every.get),
      setInterval(() => this.pays && this.#send('POST', '/invoices/pay'), every.pay),
    ];
  }

  /** Waits for the last answers. */
  async stop(): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer);
    await Promise.all(this.#open);
    this.#agent.destroy();
  }

  #send(method: string, path: string): void {
    this.sent += 1;
    const agent = this.sent % 2 === 0 ? this.#agent : false;
    const counted = bodyOf(this.#url + path, { method, agent, patience })
      .catch(({ message }: Error) => {
        const what = `${method} ${path}, ${agent ? 'kept' : 'new'} connection: ${message}`;
        this.failed += 1;
        if (!this.failures.has(what)) this.#onFailure(what);
        this.failures.set(what, (this.failures.get(what) ?? 0) + 1);
      })
      .finally(() => this.#open.delete(counted));
    this.#open.add(counted);
  }
}
