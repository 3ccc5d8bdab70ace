import { z } from 'zod';
import type { Step } from './step.ts';

/** What a service is told about itself when it starts. */
export interface Self {
  /** Identifies the code that runs; see `hashSource`. */
  source: string;
  /** Names the process among its replicas and its predecessors. */
  instance: string;
  env: NodeJS.ProcessEnv;
  /** The sources that were saved since and did not start; told by libraries/chassis/dev only. */
  failed?: () => string | undefined;
  /** Runs the steps of a payment; only tests give another one. */
  step?: Step;
}

/** What `GET /version` says of the process that answers. */
export const version = () =>
  z
    .object({
      service: z.string(),
      source: z.string().meta({ description: 'A SHA-256 over the sources that run.' }),
      instance: z
        .string()
        .meta({ description: 'Names the process among its replicas and its predecessors.' }),
      failed: z
        .string()
        .optional()
        .meta({ description: 'In development: the SHA-256 over sources that were saved and do not start.' }),
    })
    .meta({ id: 'Version' });
export type Version = z.infer<ReturnType<typeof version>>;
