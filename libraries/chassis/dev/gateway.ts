import {
  createServer,
  request as send,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from 'node:http';
import { pipeline } from 'node:stream';

/** As in the chassis's server: longer than a client or a load balancer keeps an idle connection. */
const keepAliveTimeout = 65_000;

/**
 * How long a client that sends no more is waited for, in milliseconds: it may want its answer, or it has gone. A
 * service has answered most requests by then, and is told of a client that has gone.
 */
const halfClosedTimeout = 1_000;

/** A process that a request can be sent to. */
export interface Target {
  /** Of loopback. */
  port: number;
  /** Keeps it from being told to end until what this gives is called, once: a connection may be on its way to it. */
  hold(): () => void;
}

/**
 * An HTTP server that hands each request to the process that serves at that moment. Clients keep their
 * connections while processes come and go: none is closed under a request, and none stays with old code.
 * @param serving the process to send a request to; where it rejects, its message is answered with 503
 */
export function createGateway(serving: () => Promise<Target>): Server {
  const server = createServer(
    { keepAliveTimeout },
    (request, response) => void forward(serving, request, response),
  );
  // Else Node closes the connection of a client that sends no more, before the process behind has answered.
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
  // Nobody waits any more: a connection without a request would keep the process from ending.
  if (response.destroyed || request.socket.readableEnded) {
    request.socket.destroy();
    return;
  }
  const { method, url: path } = request;
  // A connection of its own: one that is kept could be closed by a process that ends. It says keep-alive, since a
  // server that closes after its answer would cut off a client that is still sending its body.
  const headers = [...endToEnd(request.rawHeaders), 'Connection', 'keep-alive'];
  // HTTP/1.0 may have none, and what is sent on is HTTP/1.1.
  if (request.headers.host === undefined) headers.push('Host', '');
  const onward = send({ host: '127.0.0.1', port: target.port, method, path, headers, agent: false });
  // Until it answers: then it has the connection, and a stream that goes on for hours keeps no save waiting.
  const release = once(target.hold());
  onward.on('close', release);
  onward.on('response', (answer) => {
    release();
    // It went away while the answer's head was on its way.
    if (response.destroyed) {
      onward.destroy();
      return;
    }
    // How the answer is cut up is the client's connection's affair: HTTP/1.0 knows no chunks.
    const answered = endToEnd(answer.rawHeaders, /^transfer-encoding$/i);
    response.writeHead(answer.statusCode ?? 502, answer.statusMessage, answered);
    pipeline(answer, response, () => onward.destroy());
  });
  onward.on('error', (error) => {
    if (!response.headersSent)
      refuse(response, 502, `the service ended before it answered (${error.message})`);
  });
  response.on('close', () => onward.destroy());
  onward.flushHeaders();
  request.pipe(onward);
  // A client may still be sending what nobody reads any more.
  onward.on('close', () => request.unpipe(onward).resume());
}

/**
 * Headers as a list of names and values, without those that are about one connection only (RFC 9110, 7.6.1).
 * @param without names others to leave out
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
