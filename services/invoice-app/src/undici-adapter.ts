import { AxiosError, type AxiosAdapter, type AxiosResponse } from 'axios';
import { Agent } from 'undici';

export interface UndiciOptions {
  /** The maximum number of connections to each origin. */
  connections: number;
  /** The maximum size of a response, in bytes. The request fails if the response is larger. */
  maxResponseSize?: number;
}

/**
 * Creates an axios adapter that sends requests through undici, which handles more requests per second than Node's own
 * HTTP client. Request bodies must be strings; response bodies are text. The adapter accepts every status and follows
 * no redirects. It ignores axios's `proxy` and `timeout`: use `signal` to limit the time.
 */
export function createUndiciAdapter(options: UndiciOptions): AxiosAdapter {
  const agent = new Agent({ ...options, pipelining: 1 });
  return async (config) => {
    const { origin, pathname, search } = new URL(config.url!, config.baseURL);
    const signal = config.signal as AbortSignal | undefined;
    try {
      const { statusCode, headers, body } = await agent.request({
        origin,
        path: pathname + search,
        method: (config.method ?? 'get').toUpperCase(),
        headers: config.headers.toJSON() as Record<string, string>,
        body: config.data ?? null,
        ...(signal && { signal }),
      });
      const response: AxiosResponse = {
        data: await body.text(),
        status: statusCode,
        statusText: '',
        headers,
        config,
      };
      return response;
    } catch (error) {
      const code = signal?.aborted
        ? AxiosError.ECONNABORTED
        : ((error as NodeJS.ErrnoException).code ?? AxiosError.ERR_NETWORK);
      throw AxiosError.from(error, code, config);
    }
  };
}
