import { request as send, type Agent } from 'node:http';
import { text } from 'node:stream/consumers';

export interface Ask {
  method?: string;
  /** Reuses connections; false gives the request its own connection. */
  agent?: Agent | false;
  /** The time limit for the whole response, in milliseconds. */
  patience?: number;
}

/** Sends a request without a body. @throws {Error} if the response is missing or incomplete */
export async function ask(url: string, { method = 'GET', agent = false, patience = 30_000 }: Ask = {}) {
  const signal = AbortSignal.timeout(patience);
  const answer = Promise.withResolvers<{ status: number; body: string; requestId: string | undefined }>();
  send(url, { method, agent, signal }, (response) => {
    const status = response.statusCode ?? 0;
    const requestId = response.headers['x-request-id']?.toString();
    text(response).then((body) => answer.resolve({ status, body, requestId }), answer.reject);
  })
    .on('error', answer.reject)
    .end();
  return await answer.promise;
}
