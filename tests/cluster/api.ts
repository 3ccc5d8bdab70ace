import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import { Agent, fetch, WebSocket } from 'undici';

/**
 * Requests to the API server with the certificates of kubectl's context. A kubectl process for each of them would take
 * 0.15 s of CPU, and the tests send hundreds.
 */

interface Connection {
  server: string;
  /** Keeps few connections open for many requests. */
  requests: Agent;
  /** Opens a connection for each command: a command occupies it until it ends. */
  commands: Agent;
}

const run = promisify(execFile);
let connection: Promise<Connection> | undefined;

async function connect(): Promise<Connection> {
  const flags = ['--context=kind-payloop', '--minify', '--raw', '--output=json'];
  const config = JSON.parse((await run('kubectl', ['config', 'view', ...flags])).stdout);
  const [{ cluster }] = config.clusters;
  const [{ user }] = config.users;
  const [ca, cert, key] = [
    cluster['certificate-authority-data'],
    user['client-certificate-data'],
    user['client-key-data'],
  ].map((data: string) => Buffer.from(data, 'base64'));
  const options = { connect: { ca, cert, key } };
  return {
    server: cluster.server,
    requests: new Agent({ ...options, connections: 4 }),
    commands: new Agent(options),
  };
}

interface Options {
  method?: string;
  /** Sent as JSON. */
  body?: object;
  /** Sends the request as a user of this group. The empty text means a user of no group. */
  group?: string;
  headers?: Record<string, string>;
}

/**
 * Sends a request and returns the object. Repeats it, as kubectl does, while the API server has too many.
 * @throws {Error} with the API server's message if it refuses
 */
export async function request(
  path: string,
  { method = 'GET', body, group, headers = {} }: Options = {},
): Promise<any> {
  const { server, requests } = await (connection ??= connect());
  const user = group === undefined ? {} : { 'Impersonate-User': 'somebody' };
  const options = {
    dispatcher: requests,
    method,
    headers: {
      'Content-Type': 'application/json',
      ...user,
      ...(group && { 'Impersonate-Group': group }),
      ...headers,
    },
    body: body === undefined ? null : JSON.stringify(body),
  };
  for (;;) {
    const response = await fetch(new URL(path, server), options);
    const text = await response.text();
    if (response.status === 429) {
      await setTimeout(1_000 * Number(response.headers.get('Retry-After') ?? 1));
      continue;
    }
    const answer = JSON.parse(text);
    if (!response.ok) throw new Error(answer.message);
    return answer;
  }
}

/** Returns the objects at a path, of all namespaces unless the path names one. */
export async function list(path: string, selector?: string): Promise<any[]> {
  const query = selector === undefined ? '' : `?labelSelector=${encodeURIComponent(selector)}`;
  return (await request(path + query)).items;
}

const textOf = (chunks: Buffer[]) => Buffer.concat(chunks).toString();

/**
 * Runs a command in a pod and returns its output.
 * Protocol: https://github.com/kubernetes/enhancements, KEP 4006. The first byte of a message names its channel.
 * @throws {Error} with the error output if the command fails or its pod is gone
 */
export async function exec(namespace: string, pod: string, command: readonly string[]): Promise<string> {
  const { server, commands } = await (connection ??= connect());
  const url = new URL(`/api/v1/namespaces/${namespace}/pods/${pod}/exec?stdout=true&stderr=true`, server);
  for (const word of command) url.searchParams.append('command', word);
  url.protocol = 'wss:';
  const socket = new WebSocket(url, { protocols: 'v5.channel.k8s.io', dispatcher: commands });
  socket.binaryType = 'arraybuffer';
  const [output, errors, status]: Buffer[][] = [[], [], []];
  socket.addEventListener('message', ({ data }) => {
    const message = Buffer.from(data as ArrayBuffer);
    [undefined, output, errors, status][message[0]!]?.push(message.subarray(1));
  });
  socket.addEventListener('error', ({ error, message }) =>
    errors!.push(Buffer.from(`${error?.message ?? message}: `)),
  );
  await once(socket, 'close');
  const end = status!.length > 0 ? JSON.parse(textOf(status!)) : { message: 'the connection was closed' };
  if (end.status !== 'Success') throw new Error(`${namespace}/${pod}: ${textOf(errors!)}${end.message}`);
  return textOf(output!);
}
