import { connect, createServer } from 'node:net';
import { listenerOf, processOf } from './processes.ts';

/** Returns a port that is free now; another process may still take it first. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject).listen(0, '127.0.0.1', resolve);
  });
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === 'string') throw new Error('no free port');
  return address.port;
}

/** Returns one line that names the port, its owner and the remedy, or undefined if the port is free on localhost. */
export async function whyTaken(variable: string, port: number): Promise<string | undefined> {
  // Also tries to connect: on macOS two processes can listen on one port if one of them listens on all addresses.
  const accepted = await Promise.all([accepts('127.0.0.1', port), accepts('::1', port)]);
  const refusal = accepted.includes(true) ? 'EADDRINUSE' : await refusalToListen(port);
  if (refusal === undefined) return undefined;
  const remedy = `set ${variable} to a free port`;
  if (refusal !== 'EADDRINUSE') return `port ${port} cannot be used (${refusal}): ${remedy}`;
  const pid = await listenerOf(port);
  const owner = pid === undefined ? undefined : await processOf(pid);
  const who = owner ? `process ${pid} (${shorten(owner.command)})` : 'a process of another user';
  return `port ${port} is in use by ${who}: stop it, or ${remedy}`;
}

function accepts(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host, port, timeout: 1_000 });
    const answer = (accepted: boolean) => {
      socket.destroy();
      resolve(accepted);
    };
    socket.once('connect', () => answer(true));
    socket.once('error', () => answer(false)).once('timeout', () => answer(false));
  });
}

function refusalToListen(port: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(undefined)));
  });
}

/** Cuts a command in the middle: it starts with its program, and ends with the file and the service that it runs. */
function shorten(command: string): string {
  return command.length > 140 ? `${command.slice(0, 60)} … ${command.slice(-77)}` : command;
}
