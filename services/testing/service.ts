import type { Self, Service } from '@payloop/kit/run.ts';
import { createDatabase } from './database.ts';

export interface RunningService {
  url: string;
  metricsUrl: string;
  databaseUrl: string;
  /** Stops the service as SIGTERM would. */
  stop(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/**
 * Starts a service on a port and a database of its own, and waits until it is ready.
 * @param postgresUrl the superuser's; outside of vitest it has to be given
 */
export async function startService(
  service: Service,
  env: Record<string, string> = {},
  self: Partial<Self> = {},
  postgresUrl?: string,
): Promise<RunningService> {
  const database = await createDatabase(postgresUrl);
  const running = await service.start({
    source: 'the code under test',
    instance: 'test',
    ...self,
    env: {
      HOST: '127.0.0.1',
      PORT: '0',
      METRICS_PORT: '0',
      LOG_LEVEL: 'silent',
      DATABASE_URL: database.url,
      ...env,
    },
  });
  const url = `http://127.0.0.1:${running.port}`;
  await untilReady(url);
  let stopped: Promise<void> | undefined;
  const stop = () => (stopped ??= running.stop());
  return {
    url,
    metricsUrl: `http://127.0.0.1:${running.metricsPort}/metrics`,
    databaseUrl: database.url,
    stop,
    async [Symbol.asyncDispose]() {
      await stop();
      await database.drop();
    },
  };
}

/** Asks until `/readyz` says 200. */
export async function untilReady(url: string): Promise<void> {
  for (;;) {
    const status = await fetch(`${url}/readyz`).then(
      (response) => response.status,
      () => 0,
    );
    if (status === 200) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** The status and the body of an answer, parsed where it is JSON. */
export async function ask(url: string, init?: RequestInit): Promise<{ status: number; body: unknown }> {
  const response = await fetch(url, init);
  const text = await response.text();
  const isJson = response.headers.get('Content-Type')?.startsWith('application/json');
  return { status: response.status, body: isJson ? JSON.parse(text) : text };
}

/** POST with the body as it is and no Content-Type. */
export function post(url: string, body = '', headers: Record<string, string> = {}) {
  return ask(url, { method: 'POST', body: new TextEncoder().encode(body), headers });
}
