import { z } from 'zod';

/** What `GET /version` says of the process that answers. */
export const version = z
  .object({
    service: z.string(),
    source: z.string().meta({ description: 'A SHA-256 over the sources that run.' }),
    instance: z.string().meta({ description: 'Names the process among its replicas and its predecessors.' }),
  })
  .meta({ id: 'Version' });
export type Version = z.infer<typeof version>;
