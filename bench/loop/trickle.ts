// Sends requests while code is saved. A user would notice if they failed.
import { Agent } from 'node:http';
import { bodyOf } from './clock.ts';

/** The interval between requests, in milliseconds. */
const every = { get: 50, pay: 200 };
/** The timeout of a request, in milliseconds. */
const patience = 10_000;

/** Sends requests at a steady rate, every second one over a new connection, and counts failures. */
export class Trickle {
  /** Whether it pays invoices as well as reading them. */
  pays = false;
  sent = 0;
  failed = 0;
  /** The number of failures of each kind. */
  readonly failures = new Map<string, number>();
  readonly #url: string;
  readonly #onFailure: (failure: string) => void;
  readonly #agent = new Agent({ keepAlive: true });
  readonly #timers: NodeJS.Timeout[];
  readonly #inFlight = new Set<Promise<unknown>>();

  /** @param onFailure called with the first failure of each kind */
  constructor(url: string, onFailure: (failure: string) => void) {
    this.#url = url;
    this.#onFailure = onFailure;
    this.#timers = [
      setInterval(() => this.#send('GET', '/invoices?limit=1'), every.get),
      setInterval(() => this.pays && this.#send('POST', '/invoices/pay'), every.pay),
    ];
  }

  /** Stops sending and waits for the last answers. */
  async stop(): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer);
    await Promise.all(this.#inFlight);
    this.#agent.destroy();
  }

  #send(method: string, path: string): void {
    this.sent += 1;
    const agent = this.sent % 2 === 0 ? this.#agent : false;
    const counted = bodyOf(this.#url + path, { method, agent, patience })
      .catch(({ message }: Error) => {
        const failure = `${method} ${path}, ${agent ? 'kept' : 'new'} connection: ${message}`;
        this.failed += 1;
        if (!this.failures.has(failure)) this.#onFailure(failure);
        this.failures.set(failure, (this.failures.get(failure) ?? 0) + 1);
      })
      .finally(() => this.#inFlight.delete(counted));
    this.#inFlight.add(counted);
  }
}
