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

/** The ids of a span, as log lines and exemplars have them. */
export type SpanIds = { trace_id: string; span_id: string };

export type Attributes = Record<string, string | number>;

/** A span that later work can have as its parent. */
export type ParentSpan = object;

/** How a request ended. */
export interface RequestEnd {
  method: string;
  path: string;
  /** The pattern that the path matched; undefined where it matched none. */
  route: string | undefined;
  /** Undefined where the client was gone before its answer. */
  status: number | undefined;
  requestId: string;
}

/** The span of a request that came in. */
export interface RequestSpan {
  traceId: string;
  /** As in the W3C's header. */
  traceparent: string;
  /** Runs `work`, and what it begins, as a part of the request. */
  run<T>(work: () => T): T;
  end(how: RequestEnd): void;
}

/** What the functions of tracing.ts come to, by the same names. */
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

/** How long a process that ends tries to send its last spans, in milliseconds: nobody waits for them. */
const flushTimeout = 1_000;

/** Begins a trace of its own, outside of any request: what recovery does when it has something to do. */
const roots = new Set(['recover']);
/** Asks another service, whose span is below this one. */
const clients = new Set(['post']);

/** The other spans that wait for what is done in this context. */
const othersKey = createContextKey('others');

export interface TracerOptions {
  service: string;
  /** Where OTLP over HTTP is taken, without `/v1/traces`. */
  endpoint: string;
  logLevel: string;
}

/**
 * Traces by OpenTelemetry, as the process's own. Spans are sent in batches in the background; of those that cannot
 * be sent at most 2,048 are kept, and why is logged.
 */
export function createTracer({ service, endpoint, logLevel }: TracerOptions): Tracer {
  const sayWhy = logFailures(createLog(service, logLevel));
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
      // Whoever waits for it may be gone.
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
      await Promise.race([provider.shutdown().catch(sayWhy), timeout]);
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

/** Logs what keeps spans from being sent, once a reason. @returns what it is told by */
function logFailures(log: Log): (error: unknown) => void {
  let said = '';
  const warn = (message: string) => {
    if (message !== said) log.warn(`traces: ${message}`);
    said = message;
  };
  const sayWhy = (error: unknown) => warn(`spans were not sent: ${reduceError(error).message}`);
  setGlobalErrorHandler(sayWhy);
  const ignore = () => {};
  diag.setLogger(
    { error: warn, warn, info: ignore, debug: ignore, verbose: ignore },
    { logLevel: DiagLogLevel.WARN, suppressOverrideMessage: true },
  );
  return sayWhy;
}
