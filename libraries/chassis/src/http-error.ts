import { z } from 'zod';

/** What every error is answered with. Made when it is asked for, as are all schemas of answers: see openapi.ts. */
export const errorBody = () =>
  z.object({ error: z.string().meta({ description: 'What is wrong, in a line.' }) }).meta({ id: 'Error' });
export type ErrorBody = z.infer<ReturnType<typeof errorBody>>;

/** An answer that a handler throws: an HTTP status and the text of its `{"error": …}` body. */
export class HttpError extends Error {
  override name = 'HttpError';
  readonly status: number;
  /** When to ask again, in seconds, for the header `Retry-After`. */
  readonly retryAfter: number | undefined;

  constructor(status: number, message: string, retryAfter?: number) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}
