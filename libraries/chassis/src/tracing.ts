import type { IncomingHttpHeaders } from 'node:http';
import { httpUrl, logLevel, readVariables } from './config.ts';
import { addToLines } from './log.ts';
// Its types only: it is loaded where traces are on.
import type { Attributes, ParentSpan, RequestSpan, SpanIds, Tracer } from './otel.ts';

export type { ParentSpan } from './otel.ts';

/** The process's, as the span that is active is; none, and nothing of OpenTelemetry is loaded, where traces are off. */
let tracer: Tracer | undefined;

/**
 * Makes traces from here on, where OTEL_EXPORTER_OTLP_ENDPOINT says where to send them.
 * @throws {ConfigError} when that is no URL
 */
export async function startTracing(service: string, env: NodeJS.ProcessEnv): Promise<void> {
  // Before anything that costs a start time.
  if (!env.OTEL_EXPORTER_OTLP_ENDPOINT) return;
  const variables = {
    OTEL_EXPORTER_OTLP_ENDPOINT: httpUrl('http://otel-collector.monitoring:4318'),
    LOG_LEVEL: logLevel,
  };
  const { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, LOG_LEVEL } = readVariables(variables, env);
  const { createTracer } = await import('./otel.ts');
  tracer = createTracer({ service, endpoint, logLevel: LOG_LEVEL });
  addToLines(() => tracer?.ids() ?? {});
}

/** Sends what is left, for a second at most, and makes no more traces. */
export async function stopTracing(): Promise<void> {
  const stopped = tracer;
  tracer = undefined;
  await stopped?.stop();
}

/** Runs `work` as a span of the request that it is for; outside of one it is none. */
export function span<T>(name: string, work: () => Promise<T>): Promise<T> {
  return tracer === undefined ? work() : tracer.span(name, work);
}

/** A span for a request, part of its caller's trace where it says which; undefined where traces are off. */
export function startRequest(headers: IncomingHttpHeaders): RequestSpan | undefined {
  return tracer?.request(headers);
}

/** The ids of the active span, for an exemplar: undefined also where nobody keeps the trace. */
export function idsForExemplar(): SpanIds | undefined {
  return tracer?.sampledIds();
}

/** What a request to another service carries, so that its spans are part of this trace: `traceparent`. */
export function traceHeaders(): Record<string, string> {
  return tracer === undefined ? none : tracer.headers();
}
const none = {};

/** Says something of the span that is active: no key, no token. */
export function annotate(attributes: Attributes): void {
  tracer?.annotate(attributes);
}

/** The active span, to hand to `withParents`; undefined when tracing is off. */
export function activeSpan(): ParentSpan | undefined {
  return tracer?.activeSpan();
}

/**
 * Runs work that several requests wait for. Its spans are children of the first request's span, and linked with the
 * spans of the others.
 */
export function withParents<T>(parents: () => (ParentSpan | undefined)[], work: () => T): T {
  return tracer === undefined ? work() : tracer.withParents(parents(), work);
}
