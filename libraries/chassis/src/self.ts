import { z } from 'zod';
import type { Step } from './step.ts';

/** The identity of a process of a service, and its environment. */
export interface Self {
  /** The hash of the running sources, see `hashSource`; a note instead if they changed while they were loaded. */
  source: string;
  /** Identifies the process among its replicas and predecessors. */
  instance: string;
  env: NodeJS.ProcessEnv;
  /**
   * Returns the hash of sources that were saved later and failed to start; undefined if there are none. Only the
   * reloader of libraries/chassis/dev reports such sources.
   */
  failed?: () => string | undefined;
  /** Runs the steps of the service; only tests replace it. */
  step?: Step;
}

/** The response of `GET /version`. */
export const version = () =>
  z
    .object({
      service: z.string(),
      source: z.string().meta({ description: 'The SHA-256 of the running sources.' }),
      instance: z
        .string()
        .meta({ description: 'Identifies the process among its replicas and predecessors.' }),
      failed: z
        .string()
        .optional()
        .meta({ description: 'In development: the SHA-256 of saved sources that failed to start.' }),
    })
    .meta({ id: 'Version' });
export type Version = z.infer<ReturnType<typeof version>>;
