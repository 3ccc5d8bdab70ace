import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Service } from '@payloop/chassis/run.ts';
import type { Self } from '@payloop/chassis/self.ts';
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
 * Starts a service with its own port and database, and waits until it is ready.
 * @param postgresUrl the superuser's connection URL; required outside vitest
 */
export async function startService(
  service: Service,
  env: Record<string, string> = {},
  self: Partial<Self> = {},
  postgresUrl?: string,
): Promise<RunningService> {
  const database = await createDatabase(postgresUrl);
  const running = await startUnready(service, { DATABASE_URL: database.url, ...env }, self);
  await untilReady(running.url);
  return {
    ...running,
    databaseUrl: database.url,
    async [Symbol.asyncDispose]() {
      await running.stop();
      await database.drop();
    },
  };
}

/** Starts a service without waiting until it is ready. No database is reachable unless `env` names one. */
export async function startUnready(
  service: Service,
  env: Record<string, string> = {},
  self: Partial<Self> = {},
): Promise<Pick<RunningService, 'url' | 'metricsUrl' | 'stop'>> {
  const running = await service.start({
    source: 'the code under test',
    instance: 'test',
    ...self,
    env: {
      ENVIRONMENT: 'dev',
      HOST: '127.0.0.1',
      PORT: '0',
      METRICS_PORT: '0',
      LOG_LEVEL: 'silent',
      DATABASE_URL: 'postgres://127.0.0.1:1/',
      ...env,
    },
  });
  let stopped: Promise<void> | undefined;
  return {
    url: `http://127.0.0.1:${running.port}`,
    metricsUrl: `http://127.0.0.1:${running.metricsPort}/metrics`,
    stop: () => (stopped ??= running.stop()),
  };
}

/** Polls every 10 ms until `condition` holds. */
export async function until(condition: () => Promise<boolean> | boolean): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 10));
}

/** Polls `/readyz` until it answers 200. */
export const untilReady = (url: string) => until(async () => (await statusOf(`${url}/readyz`)) === 200);

/** Returns the status of a GET request, or 0 if there is no response. */
export function statusOf(url: string): Promise<number> {
  return fetch(url).then(
    ({ status }) => status,
    () => 0,
  );
}

/** Starts an HTTP server on a free loopback port. */
export async function listen(
  listener: (request: IncomingMessage, response: ServerResponse) => void | Promise<void>,
) {
  const server = createServer((request, response) => void listener(request, response)).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    [Symbol.asyncDispose]: async () => {
      const closed = once(server, 'close');
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
}

/** Sends a request and returns the status and the body, parsed if it is JSON. */
export async function ask(url: string, init?: RequestInit): Promise<{ status: number; body: unknown }> {
  const response = await fetch(url, init);
  const text = await response.text();
  const isJson = response.headers.get('Content-Type')?.startsWith('application/json');
  return { status: response.status, body: isJson ? JSON.parse(text) : text };
}

/** Sends a POST request with the body unchanged and no Content-Type. */
export function post(url: string, body = '', headers: Record<string, string> = {}) {
  return ask(url, { method: 'POST', body: new TextEncoder().encode(body), headers });
}
