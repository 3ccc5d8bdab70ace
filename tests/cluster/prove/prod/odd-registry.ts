import { execFile } from 'node:child_process';
import { createServer, request, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { promisify } from 'node:util';

const run = promisify(execFile);
const startMs = 20_000;

/** A request to the registry, as https://github.com/opencontainers/distribution-spec names its parts. */
export interface Asked {
  method: string;
  repository: string;
  /** Such as `manifests` or `blobs`. */
  kind: string;
  /** A tag, a digest or the rest of the path. */
  reference: string;
  /** Whether a tag of this repository has been pushed. */
  isKnown: boolean;
  /** What the client's token is for, such as `repository:a/b:pull,push`; empty without a token. */
  scope: string;
}

/** The answer in place of the registry's, or undefined where the registry itself answers. */
export type Oddity = (asked: Asked) => number | undefined;

export interface OddRegistry {
  /** Such as `127.0.0.1:40123`. */
  host: string;
  /** The registry behind it, which answers everybody truly. */
  plainHost: string;
  /** How the registry answers from now on. @param wantsTokens whether it asks for tokens first */
  behave(oddity: Oddity, wantsTokens?: boolean): void;
  close(): Promise<void>;
}

const codes: Record<number, string> = { 401: 'UNAUTHORIZED', 403: 'DENIED', 404: 'MANIFEST_UNKNOWN' };

/** Starts a real registry in a container, and before it a proxy on loopback that answers as odd registries do. */
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
    // The client's own Host comes back in the registry's Location headers, so uploads go through here too.
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
