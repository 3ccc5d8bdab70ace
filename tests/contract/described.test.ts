import { createServer } from 'node:http';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { expect, test } from 'vitest';
import { Description, send, type Answered, type Asked } from './described.ts';

const text = { description: 'It.', content: { 'text/plain': { schema: { const: 'not found' } } } };
const notAllowed = { description: 'No.', headers: { Allow: { required: true, schema: { type: 'string' } } } };
const document = {
  openapi: '3.1.1',
  info: { title: 'shop', version: '1' },
  paths: {
    '/items/{id}': {
      get: {
        parameters: [
          { name: 'id', in: 'path', required: true, schema: { type: 'integer' } },
          { name: 'size', in: 'query', required: false, schema: { enum: ['s', 'm'] } },
          { name: 'Key', in: 'header', required: false, schema: { type: 'string', maxLength: 3 } },
        ],
        responses: {
          200: {
            description: 'It.',
            headers: { Etag: { required: true, schema: { type: 'string' } } },
            content: {
              'application/json': {
                schema: {
                  type: 'object',
                  required: ['id'],
                  properties: { id: {} },
                  additionalProperties: false,
                },
              },
            },
          },
          400: { description: 'Wrong.' },
        },
      },
    },
    '/items': {
      post: {
        requestBody: { required: true, content: { 'application/json': { schema: { type: 'number' } } } },
        responses: { 200: { description: 'Done.' }, 400: { description: 'Wrong.' } },
      },
    },
  },
  components: { responses: { NotFound: text, MethodNotAllowed: notAllowed } },
};
const description = new Description(document);

const json = { 'Content-Type': 'application/json' };
const get = (path: string, headers = {}): Asked => ({ method: 'GET', path, headers });
const post = (body?: string, headers = json): Asked => ({
  method: 'POST',
  path: '/items',
  headers,
  ...(body !== undefined && { body }),
});
const answer = (status: number, body = '', headers: Record<string, string> = {}): Answered => ({
  status,
  body,
  headers: new Headers({ Date: 'now', ...headers }),
});
const item = answer(200, '{"id":1}', { ...json, Etag: '7' });

test.each<[string, Asked, Answered]>([
  ['an answer', get('/items/1?size=m', { Key: 'abc' }), item],
  ['a HEAD', { ...get('/items/1'), method: 'HEAD' }, answer(200, '', { ...json, Etag: '7' })],
  ['a body', post('7'), answer(200)],
  ['a wrong body that is refused', post('"7"'), answer(400)],
  ['an unknown path', get('/nowhere'), answer(404, 'not found', { 'Content-Type': 'text/plain' })],
  ['a wrong method', get('/items'), answer(405, '', { Allow: 'POST' })],
])('%s as it is described is nothing to complain of', (_name, asked, answered) => {
  expect(description.complaints(asked, answered)).toEqual([]);
});

test.each<[string, Asked, Answered, RegExp]>([
  ['a status', get('/items/1'), answer(204), /not described to answer 204/],
  [
    'a field',
    get('/items/1'),
    answer(200, '{"id":1,"x":2}', { ...json, Etag: '7' }),
    /additionalProperty":"x/,
  ],
  ['a missing field', get('/items/1'), answer(200, '{}', { ...json, Etag: '7' }), /missingProperty":"id/],
  ['no JSON', get('/items/1'), answer(200, '{', { ...json, Etag: '7' }), /no JSON/],
  [
    'a content type',
    get('/items/1'),
    answer(200, 'x', { 'Content-Type': 'text/html', Etag: '7' }),
    /text\/html/,
  ],
  ['a missing header', get('/items/1'), answer(200, '{"id":1}', json), /without Etag/],
  ['a header', get('/items/1'), answer(400, '', { 'X-New': '1' }), /the header x-new is not described/],
  ['a body where none is', post('7'), answer(200, '{}', json), /a body is not described/],
  [
    'a wrong query that is taken',
    get('/items/1?size=l'),
    item,
    /^answered all the same: .*size|parameters\/1/,
  ],
  ['a wrong path that is taken', get('/items/x'), item, /^answered all the same: .*parameters\/0/],
  ['a wrong header that is taken', get('/items/1', { Key: 'abcd' }), item, /^answered all the same/],
  ['a wrong body that is taken', post('"7"'), answer(200), /^answered all the same/],
  ['no body that is taken', post(), answer(200), /^answered all the same: no body/],
  [
    'a type that is taken',
    post('7', { 'Content-Type': 'text/csv' }),
    answer(200),
    /a body of the type text\/csv/,
  ],
  ['what is right, and refused', post('7'), answer(400), /finds nothing wrong/],
  ['another status of an unknown path', get('/nowhere'), answer(200), /answered 200, not 404/],
  [
    'another text of an unknown path',
    get('/nowhere'),
    answer(404, 'x', { 'Content-Type': 'text/plain' }),
    /const/,
  ],
  ['a wrong Allow', get('/items'), answer(405, '', { Allow: 'GET, HEAD' }), /allows GET,HEAD, not POST/],
])('%s is complained of', (_name, asked, answered, line) => {
  expect(description.complaints(asked, answered)).toContainEqual(expect.stringMatching(line));
});

test('of a stream of events the first part is read', async () => {
  const server = createServer((_request, response) => {
    response.writeHead(200, { 'Content-Type': 'text/event-stream' }).write('data: 1\n\n');
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  expect((await send(`http://127.0.0.1:${port}`, get('/progress'))).body).toBe('data: 1\n\n');
  server.closeAllConnections();
  server.close();
});

test('a document that is not OpenAPI is refused', async () => {
  const server = createServer((_request, response) => {
    response.end(JSON.stringify({ ...document, paths: { '/items': { post: { responses: { x: {} } } } } }));
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await expect(Description.of(`http://127.0.0.1:${port}`)).rejects.toThrow('not OpenAPI');
  server.closeAllConnections();
  server.close();
});
