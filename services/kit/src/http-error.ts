/** An answer that a handler throws: an HTTP status and the text of its `{"error": …}` body. */
export class HttpError extends Error {
  override name = 'HttpError';
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}
