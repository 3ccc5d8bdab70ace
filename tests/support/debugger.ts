import { EventEmitter, once } from 'node:events';
import { get } from 'node:http';
import { json } from 'node:stream/consumers';

/** Where a program stands still. */
export interface Pause {
  url: string;
  /** From 1 up, as an editor counts. */
  line: number;
  /** The value of an expression there. */
  evaluate(expression: string): Promise<unknown>;
}

interface CallFrame {
  callFrameId: string;
  location: { scriptId: string; lineNumber: number };
}

/** Does what an editor does, over the same protocol: https://chromedevtools.github.io/devtools-protocol/v8/ */
export class Debugger {
  readonly #socket: WebSocket;
  readonly #events = new EventEmitter();
  readonly #urls = new Map<string, string>();
  #asked = 0;
  /** Resolves when the other side ends the connection. */
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

  /** @throws {Error} when there is no inspector at that port of loopback */
  static async attach(port: number): Promise<Debugger> {
    const [list] = await once(get({ host: '127.0.0.1', port, path: '/json/list', agent: false }), 'response');
    const [target] = (await json(list)) as { webSocketDebuggerUrl: string }[];
    const socket = new WebSocket(target!.webSocketDebuggerUrl);
    const attached = new Debugger(socket);
    await Promise.race([once(socket, 'open'), attached.closed]);
    await attached.#ask('Debugger.enable');
    return attached;
  }

  /**
   * @param condition an expression that must be true there
   * @returns the lines at which the code that is loaded will stop
   */
  async breakAt(url: string, line: number, condition = ''): Promise<number[]> {
    const { locations } = await this.#ask<{ locations: CallFrame['location'][] }>(
      'Debugger.setBreakpointByUrl',
      { url, lineNumber: line - 1, condition },
    );
    return locations.map(({ lineNumber }) => lineNumber + 1);
  }

  /** Waits for the next time that the program stops. */
  async paused(): Promise<Pause> {
    const [{ callFrames }] = await once(this.#events, 'Debugger.paused');
    const { callFrameId, location } = callFrames[0] as CallFrame;
    return {
      url: this.#urls.get(location.scriptId) ?? '',
      line: location.lineNumber + 1,
      evaluate: async (expression) => {
        const asked = { callFrameId, expression, returnByValue: true };
        const answer = await this.#ask<{ result: { value?: unknown } }>(
          'Debugger.evaluateOnCallFrame',
          asked,
        );
        return answer.result.value;
      },
    };
  }

  async resume(): Promise<void> {
    await this.#ask('Debugger.resume');
  }

  async close(): Promise<void> {
    this.#socket.close();
    await this.closed;
  }

  async #ask<Result>(method: string, params = {}): Promise<Result> {
    this.#asked += 1;
    const answer = once(this.#events, `answer ${this.#asked}`);
    this.#socket.send(JSON.stringify({ id: this.#asked, method, params }));
    return (await answer)[0];
  }
}
