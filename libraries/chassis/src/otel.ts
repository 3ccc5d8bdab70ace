import type { IncomingHttpHeaders } from 'node:http';
import { hostname } from 'node:os';
import {
  context,
  createContextKey,
  diag,
  DiagLogLevel,
  propagation,
  ROOT_CONTEXT,
  SpanKind,
  SpanStatusCode,
  trace,
  TraceFlags,
  type Context,
  type Span,
} from '@opentelemetry/api';
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks';
import { setGlobalErrorHandler, W3CTraceContextPropagator } from '@opentelemetry/core';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http';
import { defaultResource, resourceFromAttributes } from '@opentelemetry/resources';
import { BatchSpanProcessor, TracerProvider } from '@opentelemetry/sdk-trace';
import {
  ATTR_ERROR_TYPE,
  ATTR_HTTP_REQUEST_HEADER,
  ATTR_HTTP_REQUEST_METHOD,
  ATTR_HTTP_RESPONSE_STATUS_CODE,
  ATTR_HTTP_ROUTE,
  ATTR_SERVICE_INSTANCE_ID,
  ATTR_SERVICE_NAME,
  ATTR_URL_PATH,
} from '@opentelemetry/semantic-conventions';
import { createLog, reduceError, type Log } from './log.ts';

/** The ids of a span, with the names used in log lines and exemplars. */
export type SpanIds = { trace_id: string; span_id: string };

export type Attributes = Record<string, string | number>;

/** A span that later work can have as its parent. */
export type ParentSpan = object;

/** How a request ended. */
export interface RequestEnd {
  method: string;
  path: string;
  /** The route pattern that matched; undefined if none did. */
  route: string | undefined;
  /** Undefined if the client disconnected before the response was complete. */
  status: number | undefined;
  requestId: string;
}

/** The span of an incoming request. */
export interface RequestSpan {
  traceId: string;
  /** The value of the W3C header `traceparent`. */
  traceparent: string;
  /** Runs `work` with this span active, also in the asynchronous work that it starts. */
  run<T>(work: () => T): T;
  end(how: RequestEnd): void;
}

/** Implements tracing.ts. */
export interface Tracer {
  span<T>(name: string, work: () => Promise<T>): Promise<T>;
  request(headers: IncomingHttpHeaders): RequestSpan;
  ids(): SpanIds | undefined;
  sampledIds(): SpanIds | undefined;
  headers(): Record<string, string>;
  annotate(attributes: Attributes): void;
  activeSpan(): ParentSpan | undefined;
  withParents<T>(parents: (ParentSpan | undefined)[], work: () => T): T;
  stop(): Promise<void>;
}

/** How long an exiting process tries to send its last spans, in milliseconds. A slow exit is worse than lost spans. */
const flushTimeout = 1_000;

/** Spans that start a trace of their own outside any request: recovery, when it has work to do. */
const roots = new Set(['recover']);
/** Spans of calls to another service, which adds its own span below. */
const clients = new Set(['post']);

/** Spans of the other requests that wait for the work in this context. */
const othersKey = createContextKey('others');

export interface TracerOptions {
  service: string;
  /** The base URL of an OTLP/HTTP receiver, without `/v1/traces`. */
  endpoint: string;
  logLevel: string;
}

/**
 * Creates the process-wide OpenTelemetry tracer. It sends spans in batches in the background. While sending fails, it
 * keeps at most 2,048 spans and logs the reason.
 */
export function createTracer({ service, endpoint, logLevel }: TracerOptions): Tracer {
  const logFailure = createFailureLog(createLog(service, logLevel));
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
  propagation.setGlobalPropagator(new W3CTraceContextPropagator());
  const exporter = new OTLPTraceExporter({ url: `${endpoint.replace(/\/$/, '')}/v1/traces` });
  const provider = new TracerProvider({
    resource: defaultResource().merge(
      resourceFromAttributes({ [ATTR_SERVICE_NAME]: service, [ATTR_SERVICE_INSTANCE_ID]: hostname() }),
    ),
    spanProcessors: [new BatchSpanProcessor({ exporter })],
  });
  const tracer = provider.getTracer('payloop');

  const start = (name: string, kind: SpanKind, parent: Context) => {
    const others = (parent.getValue(othersKey) ?? []) as Span[];
    const links = others.map((other) => ({ context: other.spanContext() }));
    const span = tracer.startSpan(name, { kind, links }, parent);
    for (const other of others) {
      // The other request may have ended already.
      if (other.isRecording()) other.addLink({ context: span.spanContext() });
    }
    return { span, inside: trace.setSpan(parent.deleteValue(othersKey), span) };
  };

  return {
    async span(name, work) {
      const here = context.active();
      if (trace.getSpan(here) === undefined && !roots.has(name)) return work();
      const { span, inside } = start(name, clients.has(name) ? SpanKind.CLIENT : SpanKind.INTERNAL, here);
      try {
        return await context.with(inside, work);
      } catch (error) {
        const { message = '' } = reduceError(error);
        span.setStatus({ code: SpanStatusCode.ERROR, message });
        throw error;
      } finally {
        span.end();
      }
    },
    request(headers) {
      const { span, inside } = start('request', SpanKind.SERVER, propagation.extract(ROOT_CONTEXT, headers));
      return describeRequest(span, inside);
    },
    ids: () => idsOf(trace.getActiveSpan()),
    sampledIds: () => {
      const span = trace.getActiveSpan();
      return span?.isRecording() ? idsOf(span) : undefined;
    },
    headers() {
      const headers = {};
      propagation.inject(context.active(), headers);
      return headers;
    },
    annotate: (attributes: Attributes) => void trace.getActiveSpan()?.setAttributes(attributes),
    activeSpan: () => trace.getActiveSpan(),
    withParents<T>(parents: (ParentSpan | undefined)[], work: () => T): T {
      const [first, ...others] = [...new Set(parents)].filter((each) => each !== undefined) as Span[];
      if (first === undefined) return context.with(ROOT_CONTEXT, work);
      return context.with(trace.setSpan(ROOT_CONTEXT, first).setValue(othersKey, others), work);
    },
    async stop() {
      const timeout = new Promise((resolve) => setTimeout(resolve, flushTimeout).unref());
      await Promise.race([provider.shutdown().catch(logFailure), timeout]);
    },
  };
}

function describeRequest(span: Span, inside: Context): RequestSpan {
  const { traceId, spanId, traceFlags } = span.spanContext();
  return {
    traceId,
    traceparent: `00-${traceId}-${spanId}-0${traceFlags & TraceFlags.SAMPLED}`,
    run: (work) => context.with(inside, work),
    end({ method, path, route, status, requestId }: RequestEnd) {
      span.updateName(route === undefined ? method : `${method} ${route}`);
      span.setAttributes({
        [ATTR_HTTP_REQUEST_METHOD]: method,
        [ATTR_URL_PATH]: path,
        ...(route !== undefined && { [ATTR_HTTP_ROUTE]: route }),
        ...(status !== undefined && { [ATTR_HTTP_RESPONSE_STATUS_CODE]: status }),
        [ATTR_HTTP_REQUEST_HEADER('x-request-id')]: [requestId],
      });
      if (status === undefined || status >= 500) {
        span.setAttribute(ATTR_ERROR_TYPE, status === undefined ? 'client gone' : `${status}`);
        span.setStatus({ code: SpanStatusCode.ERROR });
      }
      span.end();
    },
  };
}

function idsOf(span: Span | undefined): SpanIds | undefined {
  if (span === undefined) return undefined;
  const { traceId, spanId } = span.spanContext();
  return { trace_id: traceId, span_id: spanId };
}

/** Logs failures to send spans, each new reason once. @returns a function that reports an error */
function createFailureLog(log: Log): (error: unknown) => void {
  let logged = '';
  const warn = (message: string) => {
    if (message !== logged) log.warn(`traces: ${message}`);
    logged = message;
  };
  const logFailure = (error: unknown) => warn(`spans were not sent: ${reduceError(error).message}`);
  setGlobalErrorHandler(logFailure);
  const ignore = () => {};
  diag.setLogger(
    { error: warn, warn, info: ignore, debug: ignore, verbose: ignore },
    { logLevel: DiagLogLevel.WARN, suppressOverrideMessage: true },
  );
  return logFailure;
}
