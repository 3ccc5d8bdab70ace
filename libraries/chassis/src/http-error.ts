import { z } from 'zod';

/** The body of every error response. Like all response schemas, it is created only on demand: see openapi.ts. */
export const errorBody = () =>
  z.object({ error: z.string().meta({ description: 'The error, in one line.' }) }).meta({ id: 'Error' });
export type ErrorBody = z.infer<ReturnType<typeof errorBody>>;

/** An error response that a handler throws: an HTTP status and the text of its `{"error": …}` body. */
export class HttpError extends Error {
  override name = 'HttpError';
  readonly status: number;
  /** The `Retry-After` header: when to retry, in seconds. */
  readonly retryAfter: number | undefined;

  constructor(status: number, message: string, retryAfter?: number) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}
