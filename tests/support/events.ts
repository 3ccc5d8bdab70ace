/** A server-sent event, as received. */
export interface ServerEvent {
  event: string;
  id: string;
  // Each test knows the type of its data.
  data: any;
}

/** Reads a stream of server-sent events. */
export class EventStream {
  readonly #response: Response;
  readonly #closing: AbortController;
  readonly #reader: ReadableStreamDefaultReader<string>;
  #text = '';
  /** All text received so far, including comments and `retry`. */
  seen = '';

  private constructor(response: Response, closing: AbortController) {
    this.#response = response;
    this.#closing = closing;
    this.#reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  }

  static async open(url: string, headers: Record<string, string> = {}): Promise<EventStream> {
    const closing = new AbortController();
    return new EventStream(await fetch(url, { headers, signal: closing.signal }), closing);
  }

  get headers(): Headers {
    return this.#response.headers;
  }

  /** Returns the next event, or undefined when the stream has ended. */
  async next(): Promise<ServerEvent | undefined> {
    for (;;) {
      const end = this.#text.indexOf('\n\n');
      if (end >= 0) {
        const block = this.#text.slice(0, end);
        this.#text = this.#text.slice(end + 2);
        const fieldOf = (name: string) => new RegExp(`^${name}: (.*)$`, 'm').exec(block)?.[1] ?? '';
        if (fieldOf('event')) {
          return { event: fieldOf('event'), id: fieldOf('id'), data: JSON.parse(fieldOf('data')) };
        }
        continue;
      }
      const { value, done } = await this.#reader.read();
      if (done) return undefined;
      this.#text += value;
      this.seen += value;
    }
  }

  /** Waits for the first event that matches. @throws {Error} if the stream ends before */
  async until(matches: (event: ServerEvent) => boolean): Promise<ServerEvent> {
    for (;;) {
      const event = await this.next();
      if (event === undefined) throw new Error('the stream ended before a matching event');
      if (matches(event)) return event;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    await this.#reader.cancel().catch(() => {});
  }
}
