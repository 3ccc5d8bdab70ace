import { randomUUID } from 'node:crypto';
import { createServer, type Server } from 'node:http';
import type { Socket } from 'node:net';
import { setTimeout } from 'node:timers/promises';
import express, { type ErrorRequestHandler, type Express, type Handler, type Response } from 'express';
import { ConfigError, type SharedConfig } from './config.ts';
import { DatabaseUnavailable, type Database } from './database.ts';
import { addGuard, hostRule, type HostRule } from './guard.ts';
import { HttpError, type ErrorBody } from './http-error.ts';
import { listen } from './listen.ts';
import type { Log } from './log.ts';
import { serveMetrics, type Metrics } from './metrics.ts';
import {
  createDocument,
  describeAll,
  describeDocument,
  describeLive,
  describeReady,
  describeRequestId,
  describeRoute,
  describeStarted,
  describeVersion,
  type Method,
  type Operation,
} from './openapi.ts';
import type { Self, Version } from './self.ts';
import { startRequest } from './tracing.ts';

/** How long requests in flight may still take once the server accepts no more connections, in milliseconds. */
const drainTimeout = 20_000;
/** How long a connection may then stay open without a first request, in milliseconds. */
const unusedTimeout = 1_000;
/**
 * How long idle connections stay open, in milliseconds. Longer than proxies keep theirs, Traefik for 90 s: one that is
 * closed while a proxy sends a request on it fails the request.
 */
const keepAliveTimeout = 95_000;

/** Fields that a service adds to the response of `GET /version`. */
export interface VersionAddition {
  /** @param clientGone aborted when the client disconnects */
  read: (clientGone: AbortSignal) => Promise<object>;
  /** Describes the whole response. */
  describe: () => Record<'get', Operation>;
}

export interface ServerOptions {
  /** The service's name. */
  service: string;
  self: Self;
  config: SharedConfig & { PORT: number };
  database: Database;
  metrics: Metrics;
  version?: VersionAddition;
  /** Stops background work and any work that requests wait for. */
  stopWork?: () => Promise<void>;
  log: Log;
}

/** A running service. */
export interface Running {
  /** The configured port; if that is 0, the port that the system assigned. */
  port: number;
  /** The port of the metrics: the configured one; if that is 0, the one that the system assigned. */
  metricsPort: number;
  /** Resolves to true when its database answers and has the schema, or to false if the service stops before. */
  ready: Promise<boolean>;
  /** Fails readiness, answers the requests in flight, and closes the port and the database. */
  stop(): Promise<void>;
}

/**
 * Starts an HTTP server with everything that the services share: request ids, request logs, `/startupz`, `/livez`,
 * `/readyz`, `/openapi.json`, `/version`, JSON errors, and the guard against requests of other origins.
 * @param routes adds the service's own routes
 * @throws {ConfigError} when the server cannot listen on a port
 */
export async function startServer(options: ServerOptions, routes: (app: Express) => void): Promise<Running> {
  const { config, database, metrics, log } = options;
  let stopping = false;

  const app = express();
  app.disable('x-powered-by').disable('etag');
  const unanswered = new Set<Response>();
  app.use((_request, response, next) => {
    // Tells the client to send no more on this connection: `close` ends idle ones, and a request at that moment fails.
    if (stopping) response.set('Connection', 'close');
    unanswered.add(response);
    response.on('close', () => unanswered.delete(response));
    next();
  });
  route(app, '/startupz', { get: answerOk }, describeStarted);
  route(app, '/livez', { get: answerOk }, describeLive);
  const answerReady: Handler = async (_request, response) => {
    const reason = stopping ? 'shutting down' : await reasonNotReady(database);
    if (reason === undefined) response.type('text').send('ok');
    else response.status(503).json({ error: reason } satisfies ErrorBody);
  };
  route(app, '/readyz', { get: answerReady }, describeReady);
  app.use(observeRequests(log, metrics));
  describeAll(app, describeRequestId);
  const isServed = hostRule(config.ENVIRONMENT, options.service);
  addGuard(app, isServed);
  let document: string | undefined;
  const answerDocument: Handler = (_request, response) => {
    document ??= JSON.stringify(createDocument(app, options.service));
    response.type('json').send(document);
  };
  route(app, '/openapi.json', { get: answerDocument }, describeDocument);
  const describe = options.version?.describe ?? describeVersion;
  route(app, '/version', { get: answerVersion(options) }, describe);
  routes(app);
  app.use(() => {
    throw new HttpError(404, 'not found');
  });
  app.use(answerError(log));

  const server = createServer({ keepAliveTimeout }, app);
  const connections = trackConnections(server);
  const port = await listen(server, 'PORT', config.HOST, config.PORT);
  const metricsServer = await startMetrics(options, port, isServed);
  log.info({ port, metricsPort: metricsServer.port }, 'listening');
  return {
    port,
    metricsPort: metricsServer.port,
    ready: database.opened,
    async stop() {
      stopping = true;
      await setTimeout(config.SHUTDOWN_DELAY_MS);
      for (const response of unanswered) if (!response.headersSent) response.set('Connection', 'close');
      await Promise.all([close(server, connections), options.stopWork?.()]);
      await metricsServer.close();
      await database.close();
    },
  };
}

/** Needs no check: a process that responds has started and is alive. */
const answerOk: Handler = (_request, response) => void response.type('text').send('ok');

function answerVersion({ service, self, version }: ServerOptions): Handler {
  const { source, instance, failed } = self;
  return async (_request, response) => {
    const clientGone = new AbortController();
    response.on('close', () => clientGone.abort());
    const added = await version?.read(clientGone.signal);
    response.json({ service, source, instance, failed: failed?.(), ...added } satisfies Version);
  };
}

/**
 * Registers the handlers of a path. Other methods get 405 with `Allow`. The handler of GET also answers HEAD, without
 * the body.
 * @param describe describes each method's parameters and responses, for `GET /openapi.json`
 */
export function route<M extends Method>(
  app: Express,
  path: string,
  handlers: Record<M, Handler | Handler[]>,
  describe: () => Record<NoInfer<M>, Operation>,
) {
  const { get, post }: Partial<Record<Method, Handler | Handler[]>> = handlers;
  describeRoute(app, path, describe);
  const here = app.route(path);
  if (get) here.get(get);
  if (post) here.post(post);
  const allowed = [get && 'GET, HEAD', post && 'POST'].filter(Boolean).join(', ');
  here.all((_request, response) => {
    response.set('Allow', allowed);
    throw new HttpError(405, `method not allowed, only ${allowed}`);
  });
}

/** The id of a request. Its log lines and the requests that it causes carry the id. */
export function requestId(response: Response): string {
  return response.locals.requestId;
}

/** The reason appears in the response, not in the log: probes arrive every second or two. */
function reasonNotReady(database: Database): Promise<string | undefined> {
  return database.check().then(
    () => undefined,
    (error: DatabaseUnavailable) => error.message,
  );
}

/**
 * Gives each request an id, and logs and counts it when its response closes. The id is the caller's `X-Request-Id`, the
 * trace id, or a new one. Probe routes come first and are not logged: each replica gets a probe every second or two.
 */
function observeRequests(log: Log, metrics: Metrics): Handler {
  return (request, response, next) => {
    const start = performance.now();
    const given = request.get('X-Request-Id') ?? '';
    const { method, path } = request;
    // The payment test polls the version many times a second.
    const isRoutine = path === '/version';
    const span = isRoutine ? undefined : startRequest(request.headers);
    const inSpan = (work: () => void) => (span === undefined ? work() : span.run(work));
    const id = /^[\w.-]{1,64}$/.test(given) ? given : (span?.traceId ?? randomUUID());
    response.locals.requestId = id;
    response.set('X-Request-Id', id);
    // Browsers and callers learn the trace here if they did not start it.
    if (span !== undefined) response.set('Server-Timing', `traceparent;desc="${span.traceparent}"`);
    response.on('close', () => {
      const ms = performance.now() - start;
      // A stream ends when its client disconnects. That is not a failure, and its duration is not a latency.
      const isStream = String(response.get('Content-Type')).startsWith('text/event-stream');
      const answered = response.writableFinished || isStream ? response.statusCode : undefined;
      const status = answered ?? 'client gone';
      const pattern: string | undefined = request.route?.path;
      inSpan(() => {
        log[isRoutine ? 'debug' : 'info'](
          { requestId: id, method, path, status, ms: Math.round(ms) },
          'request',
        );
        if (!isStream) metrics.observeRequest(method, pattern ?? 'none', `${status}`, ms / 1_000);
      });
      span?.end({ method, path, route: pattern, status: answered, requestId: id });
    });
    inSpan(next);
  };
}

/** Any error that a handler throws: one of this chassis, of the body parser, or any other. */
type Thrown = Error & {
  code?: string;
  status?: number;
  retryAfter?: number;
  type?: string;
  limit?: number;
};

/** Whether the client closed the connection. The other errors of an AggregateError then no longer matter. */
function isClientGone(error: Thrown): boolean {
  if (error instanceof AggregateError) return error.errors.some(isClientGone);
  return ['ERR_STREAM_PREMATURE_CLOSE', 'ECONNRESET', 'EPIPE'].includes(error.code ?? '');
}

function answerError(log: Log): ErrorRequestHandler {
  // Express recognizes an error handler by its four parameters.
  return (err: Thrown, _request, response, _next) => {
    // The request's own log line reports the disconnect.
    if (response.destroyed && isClientGone(err)) return;
    if (response.headersSent) {
      log.error({ err, requestId: requestId(response) }, 'the response was cut off');
      // Does not call Express's own error handler: it would print the stack outside the log.
      response.destroy();
      return;
    }
    const { status = 500, message, retryAfter } = err;
    if (status >= 500) {
      const cause = err instanceof DatabaseUnavailable ? err.cause : err;
      log[status === 503 ? 'warn' : 'error']({ err: cause, requestId: requestId(response) }, message);
    }
    const tooLarge = `request body too large, at most ${(err.limit ?? 0) / 1024} kB`;
    const reason = status === 500 ? 'internal error' : message;
    const body: ErrorBody = { error: err.type === 'entity.too.large' ? tooLarge : reason };
    if (retryAfter !== undefined) response.set('Retry-After', `${retryAfter}`);
    response.status(status).json(body);
  };
}

function startMetrics({ config, metrics, log }: ServerOptions, port: number, isServed: HostRule) {
  const { HOST: host, METRICS_PORT: metricsPort } = config;
  if (metricsPort === port) throw new ConfigError(`METRICS_PORT must differ from PORT (${port})`);
  return serveMetrics({ host, port: metricsPort, metrics, isServed, log });
}

function trackConnections(server: Server): Set<Socket> {
  const connections = new Set<Socket>();
  server.on('connection', (socket) => {
    connections.add(socket);
    socket.once('close', () => connections.delete(socket));
  });
  return connections;
}

/** Stops accepting connections, waits for the requests in flight, and closes those that take too long. */
async function close(server: Server, connections: Set<Socket>): Promise<void> {
  const closed = new Promise((resolve) => server.close(resolve));
  // Responses that had sent their headers could not announce `Connection: close`, so their clients keep the connection.
  const idle = setInterval(() => server.closeIdleConnections(), 100);
  // Browsers and HTTP clients open connections in advance. Node does not count one as idle before its first request.
  const unused = globalThis.setTimeout(() => {
    for (const socket of connections) if (socket.bytesRead === 0) socket.destroy();
  }, unusedTimeout);
  const late = globalThis.setTimeout(() => server.closeAllConnections(), drainTimeout);
  await closed;
  clearInterval(idle);
  clearTimeout(unused);
  clearTimeout(late);
}
