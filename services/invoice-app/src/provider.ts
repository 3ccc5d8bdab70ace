import { Agent as HttpAgent } from 'node:http';
import { Agent as HttpsAgent } from 'node:https';
import { HttpError } from '@payloop/kit/http-error.ts';
import { reduceError, type Log } from '@payloop/kit/log.ts';
import { toMajorUnits } from '@payloop/kit/money.ts';
import axios from 'axios';
import type { Invoice } from './invoices.ts';

/** What is known of a payment after it was asked for. Unknown: it may or may not have been charged. */
export type Outcome = 'charged' | 'declined' | 'unknown';

/** How long the provider may take for an answer, in milliseconds. */
const timeout = 5_000;
/** The same for its version, which only the payment test waits for. */
const versionTimeout = 1_000;
/** More than any answer of the provider holds, in bytes. */
const maxContentLength = 10_000;

/** The payment provider, reached over HTTP. */
export class Provider {
  readonly #url: string;
  readonly #log: Log;
  readonly #http = axios.create({
    timeout,
    maxContentLength,
    maxRedirects: 0,
    // Proxy variables are meant for traffic that leaves the cluster.
    proxy: false,
    validateStatus: () => true,
    httpAgent: new HttpAgent({ keepAlive: true }),
    httpsAgent: new HttpsAgent({ keepAlive: true }),
  });

  /** @param url where payments are posted to */
  constructor(url: string, log: Log) {
    this.#url = url;
    this.#log = log;
  }

  /** Asks for one payment; never throws. */
  async pay(invoice: Invoice, requestId: string): Promise<Outcome> {
    const id = `I${invoice.id}`;
    const payment = { id, value: toMajorUnits(invoice.amount, invoice.currency), currency: invoice.currency };
    try {
      const { status, data } = await this.#http.post(this.#url, payment, {
        headers: { 'X-Request-Id': requestId },
      });
      if (status === 200 && data?.id === id) return 'charged';
      if (status === 402) return 'declined';
      this.#log.warn({ requestId, invoice: id, status }, 'the provider gave no usable answer');
    } catch (err) {
      const { message, code } = reduceError(err);
      this.#log.warn({ requestId, invoice: id, code }, `the provider could not be asked: ${message}`);
    }
    return 'unknown';
  }

  /** The provider's own `/version`, over a connection made for it, as any replica may answer; null without one. */
  async version(): Promise<unknown> {
    const fresh = { httpAgent: new HttpAgent(), httpsAgent: new HttpsAgent() };
    try {
      const { status, data } = await this.#http.get(this.#path('/version'), {
        timeout: versionTimeout,
        ...fresh,
      });
      return status === 200 && typeof data === 'object' ? data : null;
    } catch {
      return null;
    }
  }

  /** Makes the provider forget every payment. @throws {HttpError} 502 when it did not */
  async reset(): Promise<void> {
    const url = this.#path('/reset');
    const status = await this.#http.post(url).then(
      (response) => response.status,
      (error: unknown) => reduceError(error).message,
    );
    if (status !== 200) throw new HttpError(502, `payment-provider was not reset: ${status}`);
  }

  #path(path: string): string {
    return new URL(path, this.#url).href;
  }
}
