import {
  createServer,
  request as send,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from 'node:http';
import { pipeline } from 'node:stream';

/** How long idle connections stay open, in milliseconds: as in the chassis's server. */
const keepAliveTimeout = 95_000;

/**
 * How long a half-closed connection stays open, in milliseconds: its client may still read the response, or may be
 * gone. Services answer most requests within that time. Closing the connection tells the service that the client is
 * gone.
 */
const halfClosedTimeout = 1_000;

/** A process that serves requests. */
export interface Target {
  /** On loopback. */
  port: number;
  /** Delays SIGTERM until the returned function is called: a connection may be on its way. Call that function once. */
  hold(): () => void;
}

/**
 * An HTTP server that forwards each request to the process that serves at that moment. Clients keep their connections
 * while processes are replaced. No connection closes during a request, and none stays with old code.
 * @param serving returns the process for a request; if it rejects, the response is a 503 with its message
 */
export function createGateway(serving: () => Promise<Target>): Server {
  const server = createServer(
    { keepAliveTimeout },
    (request, response) => void forward(serving, request, response),
  );
  // By default Node closes a half-closed connection before the process behind has answered.
  Object.assign(server, { httpAllowHalfOpen: true });
  server.on('connection', (socket) => {
    socket.once('end', () => setTimeout(() => socket.destroy(), halfClosedTimeout).unref());
  });
  return server;
}

async function forward(
  serving: () => Promise<Target>,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  let target: Target;
  try {
    target = await serving();
  } catch (error) {
    refuse(response, 503, (error as Error).message);
    return;
  }
  // The client is gone. A connection without a request would keep the process from exiting.
  if (response.destroyed || request.socket.readableEnded) {
    request.socket.destroy();
    return;
  }
  const { method, url: path } = request;
  // Opens a connection for each request: an exiting process could close a kept one. The header is keep-alive, since a
  // server that closes after its response would cut off a client that still sends its body.
  const headers = [...endToEnd(request.rawHeaders), 'Connection', 'keep-alive'];
  // A forwarded request is HTTP/1.1, which requires a Host header. An HTTP/1.0 request may lack it.
  if (request.headers.host === undefined) headers.push('Host', '');
  const onward = send({ host: '127.0.0.1', port: target.port, method, path, headers, agent: false });
  // Holds the process until the response begins. By then it has the connection. A long stream must not delay a save.
  const release = once(target.hold());
  onward.on('close', release);
  onward.on('response', (answer) => {
    release();
    // The client left while the response head was on its way.
    if (response.destroyed) {
      onward.destroy();
      return;
    }
    // Node picks the transfer encoding for the client's connection: HTTP/1.0 has no chunks.
    const answered = endToEnd(answer.rawHeaders, /^transfer-encoding$/i);
    response.writeHead(answer.statusCode ?? 502, answer.statusMessage, answered);
    pipeline(answer, response, () => onward.destroy());
  });
  onward.on('error', (error) => {
    if (!response.headersSent)
      refuse(response, 502, `the service exited before it answered (${error.message})`);
  });
  response.on('close', () => onward.destroy());
  onward.flushHeaders();
  request.pipe(onward);
  // Discards the rest of a body that the client still sends.
  onward.on('close', () => request.unpipe(onward).resume());
}

/**
 * Returns a list of header names and values without those of a single connection (RFC 9110, 7.6.1).
 * @param without matches further names to leave out
 */
function endToEnd(raw: string[], without?: RegExp): string[] {
  const hopByHop = /^(connection|keep-alive)$/i;
  return raw.filter((_, index) => {
    const name = raw[index - (index % 2)] ?? '';
    return !hopByHop.test(name) && !without?.test(name);
  });
}

function once(work: () => void): () => void {
  let done = false;
  return () => {
    if (!done) work();
    done = true;
  };
}

function refuse(response: ServerResponse, status: number, error: string): void {
  response.writeHead(status, { 'Content-Type': 'application/json' });
  response.end(JSON.stringify({ error }));
}
