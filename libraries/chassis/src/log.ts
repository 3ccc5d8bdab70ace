import pino from 'pino';

export type Log = pino.Logger;

/** Returns fields to add to each log line; undefined when tracing is off. */
let extraFields: (() => object) | undefined;

/** Makes the loggers created after this call add fields to each line. Calls `fields` for each line. */
export function setExtraFields(fields: () => object): void {
  extraFields = fields;
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
    ...(extraFields && { mixin: extraFields }),
  });
}

/** The fields of an error that are safe to log. */
export function reduceError(error: unknown) {
  if (!(error instanceof Error)) return { message: String(error) };
  const { name, message, stack } = error;
  const code = (error as NodeJS.ErrnoException).code;
  return { type: name, message: message || code, code, stack };
}
