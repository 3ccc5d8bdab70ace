import { EventEmitter, once } from 'node:events';
import { get } from 'node:http';
import { json } from 'node:stream/consumers';

/** The place where a debugged program is paused. */
export interface Pause {
  url: string;
  /** Counted from 1, as editors do. */
  line: number;
  /** Evaluates an expression in the paused frame. */
  evaluate(expression: string): Promise<unknown>;
}

interface CallFrame {
  callFrameId: string;
  location: { scriptId: string; lineNumber: number };
}

/** Debugs a program as an editor does, over its protocol: https://chromedevtools.github.io/devtools-protocol/v8/ */
export class Debugger {
  readonly #socket: WebSocket;
  readonly #events = new EventEmitter();
  readonly #urls = new Map<string, string>();
  #lastId = 0;
  /** Resolves when the connection is closed. */
  readonly closed: Promise<unknown>;

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    this.closed = once(socket, 'close');
    socket.addEventListener('message', ({ data }) => {
      const { id, method, params, result } = JSON.parse(String(data));
      this.#events.emit(method ?? `answer ${id}`, params ?? result);
    });
    this.#events.on('Debugger.scriptParsed', ({ scriptId, url }) => this.#urls.set(scriptId, url));
  }

  /** @throws {Error} if no inspector listens on that loopback port */
  static async attach(port: number): Promise<Debugger> {
    const [list] = await once(get({ host: '127.0.0.1', port, path: '/json/list', agent: false }), 'response');
    const [target] = (await json(list)) as { webSocketDebuggerUrl: string }[];
    const socket = new WebSocket(target!.webSocketDebuggerUrl);
    const attached = new Debugger(socket);
    await Promise.race([once(socket, 'open'), attached.closed]);
    await attached.#call('Debugger.enable');
    return attached;
  }

  /**
   * @param condition an expression that must be true for the program to pause
   * @returns the lines where the loaded code will pause
   */
  async breakAt(url: string, line: number, condition = ''): Promise<number[]> {
    const { locations } = await this.#call<{ locations: CallFrame['location'][] }>(
      'Debugger.setBreakpointByUrl',
      { url, lineNumber: line - 1, condition },
    );
    return locations.map(({ lineNumber }) => lineNumber + 1);
  }

  /** Waits until the program pauses next. */
  async paused(): Promise<Pause> {
    const [{ callFrames }] = await once(this.#events, 'Debugger.paused');
    const { callFrameId, location } = callFrames[0] as CallFrame;
    return {
      url: this.#urls.get(location.scriptId) ?? '',
      line: location.lineNumber + 1,
      evaluate: async (expression) => {
        const params = { callFrameId, expression, returnByValue: true };
        const answer = await this.#call<{ result: { value?: unknown } }>(
          'Debugger.evaluateOnCallFrame',
          params,
        );
        return answer.result.value;
      },
    };
  }

  async resume(): Promise<void> {
    await this.#call('Debugger.resume');
  }

  async close(): Promise<void> {
    this.#socket.close();
    await this.closed;
  }

  async #call<Result>(method: string, params = {}): Promise<Result> {
    this.#lastId += 1;
    const answer = once(this.#events, `answer ${this.#lastId}`);
    this.#socket.send(JSON.stringify({ id: this.#lastId, method, params }));
    return (await answer)[0];
  }
}
