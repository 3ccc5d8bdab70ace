import { connect, createServer } from 'node:net';
import { listenerOf, processOf } from './processes.ts';

/** Free at this moment: somebody else may be faster. */
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

/** One line that names the port, who has it and what to do, or undefined when it is free on localhost. */
export async function whyTaken(variable: string, port: number): Promise<string | undefined> {
  if (!(await isTaken(port))) return undefined;
  const pid = await listenerOf(port);
  const owner = pid === undefined ? undefined : await processOf(pid);
  const who = owner ? `process ${pid} (${shorten(owner.command)})` : 'a process of another user';
  return `port ${port} is taken by ${who}: end it, or set ${variable} to a free port`;
}

/** macOS lets two processes listen on one port if one of them asks for all addresses: trying to listen says too little. */
async function isTaken(port: number): Promise<boolean> {
  const answers = await Promise.all([accepts('127.0.0.1', port), accepts('::1', port)]);
  return answers.includes(true) || !(await canListen(port));
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

function canListen(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}

function shorten(command: string): string {
  return command.length > 100 ? `${command.slice(0, 99)}…` : command;
}
