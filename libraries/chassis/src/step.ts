import { span } from './tracing.ts';

/**
 * Runs one asynchronous step of a service under a name, such as a statement or a request.
 *
 * A step that contains no other has at most one effect outside the process, which happens or does not. So a crash
 * inside a step equals one before or after it. Tests therefore stop or kill a process at a step, or choose the order in
 * which the steps of several replicas run.
 */
export type Step = <T>(name: string, work: () => Promise<T>) => Promise<T>;

/** Runs a step in a span when tracing is on, and otherwise as it is. Only tests use another function. */
export const step: Step = span;
