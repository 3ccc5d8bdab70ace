// Forwards connections: `node relay.ts FROM TO`. Each is a loopback port or the path of a Unix socket. Processes in
// different network namespaces can share Unix sockets.
import { once } from 'node:events';
import { connect, createServer, type Server } from 'node:net';

/** Starts a relay and resolves once it listens. */
export async function relay(from: string, to: string): Promise<Server> {
  const server = createServer((near) => {
    const far = connect(address(to));
    near.on('error', () => far.destroy()).on('close', () => far.destroy());
    far.on('error', () => near.destroy()).on('close', () => near.destroy());
    near.pipe(far).pipe(near);
  });
  server.listen(address(from));
  await once(server, 'listening');
  return server;
}

function address(at: string): { host: string; port: number } | { path: string } {
  return /^\d+$/.test(at) ? { host: '127.0.0.1', port: Number(at) } : { path: at };
}

if (process.argv[1] === import.meta.filename) {
  const [from = '', to = ''] = process.argv.slice(2);
  await relay(from, to);
  console.log('listening');
}
