import { connect, createServer, type Server, type Socket } from 'node:net';
import { addAbortSignal } from 'node:stream';
import type { ServiceProcess } from './service-process.ts';

/**
 * A debugger's way in that stays while processes come and go: each connection goes to the inspector of the
 * process that serves, and is ended where another one takes over; the debugger then connects anew.
 */
export function createInspector(serving: () => Promise<ServiceProcess>): Server {
  return createServer((debuggerSide) => void join(debuggerSide, serving));
}

async function join(debuggerSide: Socket, serving: () => Promise<ServiceProcess>): Promise<void> {
  debuggerSide.on('error', () => debuggerSide.destroy());
  // What still comes is read: unread it would reset the connection, which ends a port forward for all of its own.
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
