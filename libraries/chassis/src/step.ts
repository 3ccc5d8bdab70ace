import { span } from './tracing.ts';

/**
 * Runs one await of a payment's path under a name.
 *
 * Whatever a process was doing when it died, it was between two of these: tests stop it there, end it there,
 * or let the steps of several replicas through in an order of their own.
 */
export type Step = <T>(name: string, work: () => Promise<T>) => Promise<T>;

/** How services run their steps: nothing comes in between, and each is a span where traces are on. */
export const step: Step = span;
