// Counts the bytes sent to the cluster: a proxy for its API server that forwards the TLS connections as they are.
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { promisify } from 'node:util';

export class CountingProxy {
  /** Bytes that clients have sent to the API server. */
  sent = 0;
  readonly #sockets = new Set<Socket>();
  readonly #server: Server;

  private constructor(api: URL) {
    this.#server = createServer((client) => {
      const server = connect(Number(api.port), api.hostname);
      client.on('data', ({ length }) => (this.sent += length));
      client.pipe(server).pipe(client);
      for (const socket of [client, server]) {
        this.#sockets.add(socket);
        socket.on('error', () => {}).on('close', () => (client.destroy(), server.destroy()));
        socket.on('close', () => this.#sockets.delete(socket));
      }
    });
  }

  /**
   * Starts a proxy for the cluster of a context.
   * @param file the path for a kubeconfig that holds only this context and leads through the proxy
   */
  static async start(context: string, file: string): Promise<CountingProxy> {
    const view = ['config', 'view', '--minify', '--flatten', `--context=${context}`, '--output=json'];
    const { stdout } = await promisify(execFile)('kubectl', view);
    const config = JSON.parse(stdout);
    const { cluster } = config.clusters[0];
    const proxy = new CountingProxy(new URL(cluster.server));
    proxy.#server.listen(0, '127.0.0.1');
    await once(proxy.#server, 'listening');
    cluster.server = `https://127.0.0.1:${(proxy.#server.address() as AddressInfo).port}`;
    await writeFile(file, JSON.stringify(config), { mode: 0o600 });
    return proxy;
  }

  stop(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}
