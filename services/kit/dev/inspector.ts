import { connect, createServer, type Server, type Socket } from 'node:net';

/**
 * A debugger's way in that stays while processes come and go: each connection goes to the inspector of the
 * process that serves, and ends with it; the debugger then connects anew.
 */
export function createInspector(inspectorPort: () => Promise<number>): Server {
  return createServer((debuggerSide) => void join(debuggerSide, inspectorPort));
}

async function join(debuggerSide: Socket, inspectorPort: () => Promise<number>): Promise<void> {
  debuggerSide.on('error', () => debuggerSide.destroy());
  try {
    const processSide = connect({ host: '127.0.0.1', port: await inspectorPort() });
    processSide.on('error', () => debuggerSide.destroy()).on('close', () => debuggerSide.destroy());
    debuggerSide.on('close', () => processSide.destroy());
    debuggerSide.pipe(processSide).pipe(debuggerSide);
  } catch {
    debuggerSide.destroy();
  }
}
