import pino from 'pino';

export type Log = pino.Logger;

/** Fields of every line; undefined where traces are off. */
let context: (() => object) | undefined;

/** Adds fields to every line of the loggers that are created from here on. */
export function addToLines(fields: () => object): void {
  context = fields;
}

/**
 * A logger that writes one JSON line an event, with the ids of the span that it is part of where traces are on.
 *
 * Of an error only its type, message, code and stack are written: whatever else it carries (an Axios error
 * carries the whole request, headers included) stays out of the log.
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

/** What may be logged of an error. */
export function reduceError(error: unknown) {
  if (!(error instanceof Error)) return { message: String(error) };
  const { name, message, stack } = error;
  const code = (error as NodeJS.ErrnoException).code;
  return { type: name, message: message || code, code, stack };
}
