import { once } from 'node:events';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { ConfigError } from './config.ts';

/**
 * Starts listening.
 * @param variable the environment variable that sets the port, for the error message
 * @returns the given port; if that is 0, the port that the system assigned
 * @throws {ConfigError} when the server cannot listen on the port
 */
export async function listen(
  server: Server,
  variable: string,
  host: string | undefined,
  port: number,
): Promise<number> {
  server.listen({ host, port });
  try {
    await once(server, 'listening');
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const reason = code === 'EADDRINUSE' ? 'another process uses it' : message;
    throw new ConfigError(`cannot listen on ${variable} ${port}: ${reason}`, { cause: error });
  }
  return (server.address() as AddressInfo).port;
}
