import { request as send, type Agent } from 'node:http';
import { text } from 'node:stream/consumers';

export interface Ask {
  method?: string;
  /** Keeps the connection; without it the request has one of its own. */
  agent?: Agent | false;
  /** How long the answer may take, in milliseconds. */
  patience?: number;
}

/** Sends a request without a body. @throws {Error} where there is no whole answer */
export async function ask(url: string, { method = 'GET', agent = false, patience = 30_000 }: Ask = {}) {
  const signal = AbortSignal.timeout(patience);
  const answer = Promise.withResolvers<{ status: number; body: string }>();
  send(url, { method, agent, signal }, (response) => {
    const status = response.statusCode ?? 0;
    text(response).then((body) => answer.resolve({ status, body }), answer.reject);
  })
    .on('error', answer.reject)
    .end();
  return await answer.promise;
}
