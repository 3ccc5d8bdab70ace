import { randomUUID } from 'node:crypto';
import { createServer, type Server } from 'node:http';
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

/** How long requests under way may still take once the server is told to stop, in milliseconds. */
const drainTimeout = 20_000;
/** How long an idle connection is kept, in milliseconds: longer than a client or a load balancer keeps it. */
const keepAliveTimeout = 65_000;

/** What a service's `GET /version` has beside the process that answers. */
export interface VersionAddition {
  /** @param left aborted when the client has left */
  read: (left: AbortSignal) => Promise<object>;
  /** Describes the whole answer. */
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
  /** Ends what the service does besides answering, and what its requests wait for. */
  stopWork?: () => Promise<void>;
  log: Log;
}

/** A service that answers. */
export interface Running {
  /** The port it listens on: the one asked for, or the one it got for 0. */
  port: number;
  /** The same of the metrics. */
  metricsPort: number;
  /** Resolves with true once its database answers and has its schema; with false if it is stopped before. */
  ready: Promise<boolean>;
  /** Fails readiness, answers what is under way, closes the port and the database. */
  stop(): Promise<void>;
}

/**
 * Starts an HTTP server with what every service has: request ids and logs, `/startupz`, `/livez`,
 * `/readyz`, `/openapi.json`, `/version`, JSON errors, and what keeps other sites out.
 * @param routes adds the service's own routes
 * @throws {ConfigError} when a port cannot be had
 */
export async function startServer(options: ServerOptions, routes: (app: Express) => void): Promise<Running> {
  const { config, database, metrics, log } = options;
  let stopping = false;

  const app = express();
  app.disable('x-powered-by').disable('etag');
  const unanswered = new Set<Response>();
  app.use((_request, response, next) => {
    // A client that keeps its connection would keep this process from ending.
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
      await Promise.all([close(server), options.stopWork?.()]);
      await metricsServer.close();
      await database.close();
    },
  };
}

/** Whoever gets this answer has it from a process that started, and turns. */
const answerOk: Handler = (_request, response) => void response.type('text').send('ok');

function answerVersion({ service, self, version }: ServerOptions): Handler {
  const { source, instance, failed } = self;
  return async (_request, response) => {
    const left = new AbortController();
    response.on('close', () => left.abort());
    const added = await version?.read(left.signal);
    response.json({ service, source, instance, failed: failed?.(), ...added } satisfies Version);
  };
}

/**
 * Registers all that one path answers; any other method gets 405 with `Allow`.
 * GET answers HEAD too, without the body.
 * @param describe says of each method what it takes and answers, for `GET /openapi.json`
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

/** The id of a request, which its log lines carry, and the requests that it causes. */
export function requestId(response: Response): string {
  return response.locals.requestId;
}

/** Said in the answer alone: a probe asks every second or two. */
function reasonNotReady(database: Database): Promise<string | undefined> {
  return database.check().then(
    () => undefined,
    (error: DatabaseUnavailable) => error.message,
  );
}

/**
 * Logs and counts each request when its answer is done, and gives it an id: the caller's `X-Request-Id`, or that of
 * its trace, or a new one. Probes come before it: they ask every second or two, of each replica.
 */
function observeRequests(log: Log, metrics: Metrics): Handler {
  return (request, response, next) => {
    const start = performance.now();
    const given = request.get('X-Request-Id') ?? '';
    const { method, path } = request;
    // The payment test asks for the version many times a second.
    const isRoutine = path === '/version';
    const span = isRoutine ? undefined : startRequest(request.headers);
    const inSpan = (work: () => void) => (span === undefined ? work() : span.run(work));
    const id = /^[\w.-]{1,64}$/.test(given) ? given : (span?.traceId ?? randomUUID());
    response.locals.requestId = id;
    response.set('X-Request-Id', id);
    // How browsers and callers are told of the trace where they did not begin it.
    if (span !== undefined) response.set('Server-Timing', `traceparent;desc="${span.traceparent}"`);
    response.on('close', () => {
      const ms = performance.now() - start;
      // A stream ends when its client goes: that is no failure, and how long it was no latency.
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

/** What a handler may throw: an error of this chassis, of the body's parser, or any other. */
type Thrown = Error & {
  code?: string;
  status?: number;
  retryAfter?: number;
  type?: string;
  limit?: number;
};

/** Whether a client closed the connection of its answer; whatever else failed after that is for nobody. */
function isClientGone(error: Thrown): boolean {
  if (error instanceof AggregateError) return error.errors.some(isClientGone);
  return ['ERR_STREAM_PREMATURE_CLOSE', 'ECONNRESET', 'EPIPE'].includes(error.code ?? '');
}

function answerError(log: Log): ErrorRequestHandler {
  // Express knows an error handler by its four parameters.
  return (err: Thrown, _request, response, _next) => {
    // That it left is in the request's own line.
    if (response.destroyed && isClientGone(err)) return;
    if (response.headersSent) {
      log.error({ err, requestId: requestId(response) }, 'the answer broke off');
      // Not for Express, which would write the stack beside the log.
      response.destroy();
      return;
    }
    const { status = 500, message, retryAfter } = err;
    if (status >= 500) {
      const cause = err instanceof DatabaseUnavailable ? err.cause : err;
      log[status === 503 ? 'warn' : 'error']({ err: cause, requestId: requestId(response) }, message);
    }
    const tooLarge = `request body too large, at most ${(err.limit ?? 0) / 1024} kB`;
    const said = status === 500 ? 'internal error' : message;
    const body: ErrorBody = { error: err.type === 'entity.too.large' ? tooLarge : said };
    if (retryAfter !== undefined) response.set('Retry-After', `${retryAfter}`);
    response.status(status).json(body);
  };
}

function startMetrics({ config, metrics, log }: ServerOptions, port: number, isServed: HostRule) {
  const { HOST: host, METRICS_PORT: metricsPort } = config;
  if (metricsPort === port) throw new ConfigError(`METRICS_PORT must be another port than PORT, ${port}`);
  return serveMetrics({ host, port: metricsPort, metrics, isServed, log });
}

/** Stops accepting, waits for the requests under way, and ends those that take too long. */
async function close(server: Server): Promise<void> {
  const closed = new Promise((resolve) => server.close(resolve));
  // An answer that had begun before could not say that its connection closes.
  const idle = setInterval(() => server.closeIdleConnections(), 100);
  const late = globalThis.setTimeout(() => server.closeAllConnections(), drainTimeout);
  await closed;
  clearInterval(idle);
  clearTimeout(late);
}
