import { once } from 'node:events';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { ConfigError } from './config.ts';

/**
 * Makes a server listen.
 * @param variable holds the port, for the error
 * @returns the port: the one asked for, or the one it got for 0
 * @throws {ConfigError} when the port cannot be had
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
    const reason = code === 'EADDRINUSE' ? 'it is taken by another process' : message;
    throw new ConfigError(`${variable} ${port} cannot be listened on: ${reason}`, { cause: error });
  }
  return (server.address() as AddressInfo).port;
}
