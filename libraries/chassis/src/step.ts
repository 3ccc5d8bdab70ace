import { span } from './tracing.ts';

/**
 * Runs one asynchronous step of a payment under a name.
 *
 * Any crash is equivalent to one between two steps. Tests therefore stop or kill a process there, or choose the order
 * in which the steps of several replicas run.
 */
export type Step = <T>(name: string, work: () => Promise<T>) => Promise<T>;

/** Runs a step of a service as it is, in a span when tracing is on. Only tests use another function. */
export const step: Step = span;
