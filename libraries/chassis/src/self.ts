import { z } from 'zod';
import type { Step } from './step.ts';

/** The identity and the environment that a service gets when it starts. */
export interface Self {
  /** The hash of the running code, see `hashSource`. */
  source: string;
  /** Identifies the process among its replicas and predecessors. */
  instance: string;
  env: NodeJS.ProcessEnv;
  /** Returns the hash of sources that were saved later and failed to start. Only libraries/chassis/dev sets it. */
  failed?: () => string | undefined;
  /** Runs the steps of a payment; only tests replace it. */
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
