import { connect, createServer, type Server, type Socket } from 'node:net';
import { addAbortSignal } from 'node:stream';
import type { ServiceProcess } from './service-process.ts';

/**
 * Gives debuggers one port while processes are replaced. Each connection goes to the inspector of the process that
 * serves. The connection is closed when another process takes over, and the debugger reconnects.
 */
export function createInspector(serving: () => Promise<ServiceProcess>): Server {
  return createServer((debuggerSide) => void join(debuggerSide, serving));
}

async function join(debuggerSide: Socket, serving: () => Promise<ServiceProcess>): Promise<void> {
  debuggerSide.on('error', () => debuggerSide.destroy());
  // Discards further input: unread data would reset the connection, which ends a port forward with all connections.
  const end = () => debuggerSide.unpipe().resume().end();
  try {
    const { inspectorPort, stopping } = await serving();
    const processSide = addAbortSignal(stopping, connect({ host: '127.0.0.1', port: inspectorPort }));
    processSide.on('error', () => processSide.destroy()).on('close', end);
    debuggerSide.on('close', () => processSide.destroy());
    debuggerSide.pipe(processSide).pipe(debuggerSide);
  } catch {
    end();
  }
}
