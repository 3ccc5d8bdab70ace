import { execFile } from 'node:child_process';
import { createServer, request, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { promisify } from 'node:util';

const run = promisify(execFile);
const startMs = 20_000;

/** A request to the registry, with parts named as in https://github.com/opencontainers/distribution-spec. */
export interface Asked {
  method: string;
  repository: string;
  /** The kind of resource, such as `manifests` or `blobs`; `token` for a token request. */
  kind: string;
  /** A tag, a digest or the rest of the path. */
  reference: string;
  /** Whether a tag of this repository has been pushed. */
  isKnown: boolean;
  /** The scope of the client's token, such as `repository:a/b:pull,push`; empty if it has none. */
  scope: string;
}

/** Returns the status to answer instead of the registry, or undefined to let the registry answer. */
export type Oddity = (asked: Asked) => number | undefined;

export interface OddRegistry {
  /** The address of the proxy, such as `127.0.0.1:40123`. */
  host: string;
  /** The address of the real registry behind the proxy. */
  plainHost: string;
  /** Sets how the proxy answers from now on. @param wantsTokens whether it requires a token */
  behave(oddity: Oddity, wantsTokens?: boolean): void;
  close(): Promise<void>;
}

const codes: Record<number, string> = { 401: 'UNAUTHORIZED', 403: 'DENIED', 404: 'MANIFEST_UNKNOWN' };

/** Starts a real registry in a container, and a loopback proxy in front of it that imitates odd registries. */
export async function startOddRegistry(): Promise<OddRegistry> {
  const { stdout } = await run('docker', ['run', '--detach', '--publish=127.0.0.1::5000', 'registry:2']);
  const container = stdout.trim();
  const { stdout: port } = await run('docker', ['port', container, '5000']);
  const plainHost = port.trim();
  await waitFor(`http://${plainHost}/v2/`);

  let oddity: Oddity = () => undefined;
  let wantsTokens = false;
  const isKnown = async (repository: string) =>
    (await fetch(`http://${plainHost}/v2/${repository}/tags/list`)).status === 200;

  const refuse = (response: ServerResponse, status: number) => {
    if (status === 401) response.setHeader('www-authenticate', challenge());
    response.writeHead(status, { 'content-type': 'application/json' });
    response.end(JSON.stringify({ errors: [{ code: codes[status] ?? 'UNKNOWN', message: 'odd' }] }));
  };
  const challenge = () => `Bearer realm="http://${host}/token",service="odd"`;

  const answer = async (incoming: IncomingMessage, response: ServerResponse) => {
    const { pathname, searchParams } = new URL(incoming.url ?? '/', 'http://localhost');
    const method = incoming.method ?? 'GET';
    if (pathname === '/token') {
      const scope = searchParams.getAll('scope').join(' ');
      const [, repository = ''] = scope.split(':');
      const asked = {
        method,
        repository,
        kind: 'token',
        reference: '',
        isKnown: await isKnown(repository),
        scope,
      };
      const refusal = oddity(asked);
      if (refusal !== undefined) return refuse(response, refusal);
      return void response.end(JSON.stringify({ token: Buffer.from(scope).toString('base64url') }));
    }
    const token = incoming.headers.authorization?.replace('Bearer ', '');
    if (wantsTokens && token === undefined) return refuse(response, 401);
    const [, repository, kind, reference] = /^\/v2\/(.+)\/(manifests|blobs|tags)\/(.*)$/.exec(pathname) ?? [];
    if (repository !== undefined && kind !== undefined && reference !== undefined) {
      const scope = Buffer.from(token ?? '', 'base64url').toString();
      const asked = { method, repository, kind, reference, isKnown: await isKnown(repository), scope };
      const refusal = oddity(asked);
      if (refusal !== undefined) return refuse(response, refusal);
    }
    // The registry copies the client's Host header into its Location headers, so uploads use the proxy too.
    const { authorization: _, ...headers } = incoming.headers;
    const passed = request(`http://${plainHost}${incoming.url}`, { method, headers }, (answered) => {
      response.writeHead(answered.statusCode ?? 502, answered.headers);
      answered.pipe(response);
    });
    passed.once('error', () => response.destroy());
    incoming.pipe(passed);
  };

  const server = createServer((incoming, response) => {
    answer(incoming, response).catch(() => response.destroy());
  });
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    host,
    plainHost,
    behave(next, tokens = false) {
      oddity = next;
      wantsTokens = tokens;
    },
    async close() {
      server.closeAllConnections();
      await new Promise((closed) => server.close(closed));
      await run('docker', ['rm', '--force', '--volumes', container]);
    },
  };
}

async function waitFor(url: string): Promise<void> {
  const end = Date.now() + startMs;
  for (;;) {
    const status = await fetch(url).then(
      (response) => response.status,
      () => undefined,
    );
    if (status === 200) return;
    if (Date.now() > end) throw new Error(`${url} does not answer within ${startMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
