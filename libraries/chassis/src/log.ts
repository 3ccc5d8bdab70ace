import pino from 'pino';

export type Log = pino.Logger;

/** Fields of every log line; undefined when tracing is off. */
let context: (() => object) | undefined;

/** Adds fields to every line of the loggers created after this call. */
export function addToLines(fields: () => object): void {
  context = fields;
}

/**
 * Creates a logger that writes one JSON line per event. When tracing is on, lines carry the ids of the active span.
 *
 * The log contains only the type, message, code and stack of an error. Other fields stay out: an Axios error, for
 * example, holds the whole request with its headers.
 */
export function createLog(service: string, level: string): Log {
  return pino({
    level,
    base: { service },
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label) => ({ level: label }) },
    serializers: { err: reduceError },
    ...(context && { mixin: context }),
  });
}

/** The fields of an error that are safe to log. */
export function reduceError(error: unknown) {
  if (!(error instanceof Error)) return { message: String(error) };
  const { name, message, stack } = error;
  const code = (error as NodeJS.ErrnoException).code;
  return { type: name, message: message || code, code, stack };
}
