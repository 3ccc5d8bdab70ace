import type { IncomingHttpHeaders } from 'node:http';
import { httpUrl, logLevel, readVariables } from './config.ts';
import { setExtraFields } from './log.ts';
// Imports only types: the module is loaded when tracing is on.
import type { Attributes, ParentSpan, RequestSpan, SpanIds, Tracer } from './otel.ts';

export type { ParentSpan } from './otel.ts';

/** The process-wide tracer. When tracing is off, it is undefined and OpenTelemetry is not loaded. */
let tracer: Tracer | undefined;

/**
 * Turns tracing on if OTEL_EXPORTER_OTLP_ENDPOINT is set.
 * @throws {ConfigError} when the endpoint is not an HTTP URL
 */
export async function startTracing(service: string, env: NodeJS.ProcessEnv): Promise<void> {
  // Comes first, so that the start takes no longer when tracing is off.
  if (!env.OTEL_EXPORTER_OTLP_ENDPOINT) return;
  const variables = {
    OTEL_EXPORTER_OTLP_ENDPOINT: httpUrl('http://otel-collector.monitoring:4318'),
    LOG_LEVEL: logLevel,
  };
  const { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, LOG_LEVEL } = readVariables(variables, env);
  const { createTracer } = await import('./otel.ts');
  tracer = createTracer({ service, endpoint, logLevel: LOG_LEVEL });
  setExtraFields(() => tracer?.ids() ?? {});
}

/** Turns tracing off and flushes the remaining spans, for at most a second. */
export async function stopTracing(): Promise<void> {
  const stopped = tracer;
  tracer = undefined;
  await stopped?.stop();
}

/** Runs `work` in a child of the active span. When no span is active, only recovery gets a span, see otel.ts. */
export function span<T>(name: string, work: () => Promise<T>): Promise<T> {
  return tracer === undefined ? work() : tracer.span(name, work);
}

/** Starts the span of a request, in the caller's trace if the headers name one. Undefined when tracing is off. */
export function startRequest(headers: IncomingHttpHeaders): RequestSpan | undefined {
  return tracer?.request(headers);
}

/** The ids of the active span, for an exemplar; undefined when tracing is off or the trace is not sampled. */
export function idsForExemplar(): SpanIds | undefined {
  return tracer?.sampledIds();
}

/** The headers that continue this trace in another service: `traceparent`. */
export function traceHeaders(): Record<string, string> {
  return tracer === undefined ? none : tracer.headers();
}
const none = {};

/** Adds attributes to the active span. They must not contain keys or tokens. */
export function annotate(attributes: Attributes): void {
  tracer?.annotate(attributes);
}

/** The active span, to hand to `withParents`; undefined when tracing is off. */
export function activeSpan(): ParentSpan | undefined {
  return tracer?.activeSpan();
}

/**
 * Runs work that several requests wait for. Its spans are children of the first request's span and linked to the
 * spans of the others.
 */
export function withParents<T>(parents: () => (ParentSpan | undefined)[], work: () => T): T {
  return tracer === undefined ? work() : tracer.withParents(parents(), work);
}
