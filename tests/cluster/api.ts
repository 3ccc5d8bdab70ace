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
  /** Opens a connection for each command, because a command keeps its connection until it ends. */
  commands: Agent;
}

const run = promisify(execFile);
let connection: Promise<Connection> | undefined;

/** Reads kubectl's configuration once. The next call tries again if that failed. */
function connect(): Promise<Connection> {
  connection ??= readConfig();
  connection.catch(() => (connection = undefined));
  return connection;
}

async function readConfig(): Promise<Connection> {
  const flags = ['--context=kind-payloop', '--minify', '--raw', '--output=json'];
  const config = JSON.parse((await run('kubectl', ['config', 'view', ...flags])).stdout);
  const [{ cluster }] = config.clusters;
  const [{ user }] = config.users;
  const [ca, cert, key] = [
    cluster['certificate-authority-data'],
    user['client-certificate-data'],
    user['client-key-data'],
  ].map((data: string) => Buffer.from(data, 'base64'));
  const tls = { ca, cert, key };
  return {
    server: cluster.server,
    requests: new Agent({ connect: tls, connections: 4 }),
    // WebSockets need HTTP/1.1 here: the API server does not offer them over HTTP/2.
    commands: new Agent({ connect: tls, allowH2: false }),
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

/** How often a request is sent at most while the API server answers 429, too many requests. */
const tries = 10;

/**
 * Sends a request and returns the object. Repeats it, as kubectl does, while the answer is 429.
 * @throws {Error} with the API server's message if it refuses
 */
export async function request(
  path: string,
  { method = 'GET', body, group, headers = {} }: Options = {},
): Promise<any> {
  const { server, requests } = await connect();
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
  for (let left = tries; ; left -= 1) {
    const response = await fetch(new URL(path, server), options);
    const text = await response.text();
    if (response.ok) return JSON.parse(text);
    if (response.status !== 429 || left <= 1)
      throw new Error(`${method} ${path}: ${response.status} ${messageOf(text)}`);
    await setTimeout(1_000 * (Number(response.headers.get('Retry-After')) || 1));
  }
}

/** The message of a refusal: of a Status object, or the text itself. */
function messageOf(text: string): string {
  try {
    return JSON.parse(text).message ?? text;
  } catch {
    return text;
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
 * @throws {Error} with the error output and the exit code if the command fails, or with the API server's message if it
 * refuses to run the command
 */
export async function exec(namespace: string, pod: string, command: readonly string[]): Promise<string> {
  const { server, commands } = await connect();
  const path = `/api/v1/namespaces/${namespace}/pods/${pod}`;
  const url = new URL(`${path}/exec?stdout=true&stderr=true`, server);
  for (const word of command) url.searchParams.append('command', word);
  url.protocol = 'wss:';
  const socket = new WebSocket(url, { protocols: 'v5.channel.k8s.io', dispatcher: commands });
  socket.binaryType = 'arraybuffer';
  const [output, errors, end]: [Buffer[], Buffer[], Buffer[]] = [[], [], []];
  socket.addEventListener('message', ({ data }) => {
    const message = Buffer.from(data as ArrayBuffer);
    [undefined, output, errors, end][message[0]!]?.push(message.subarray(1));
  });
  let isOpen = false;
  socket.addEventListener('open', () => (isOpen = true));
  await once(socket, 'close');
  if (!isOpen) {
    // The event has no reason. A pod that is gone is the likely one.
    await request(path);
    throw new Error(`${path}: the API server opened no connection for the command`);
  }
  if (end.length === 0) throw new Error(`${path}: the connection ended before the command`);
  const { status, message, details } = JSON.parse(textOf(end));
  if (status === 'Success') return textOf(output);
  const code = details?.causes?.find(({ reason }: { reason: string }) => reason === 'ExitCode')?.message;
  throw new Error(`${path}: ${textOf(errors)}${code === undefined ? message : `exit code ${code}`}`);
}
