import { createServer } from 'node:http';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { expect, test } from 'vitest';
import { OpenApiDocument, send, type RecordedRequest, type RecordedResponse } from './openapi-document.ts';

const text = { description: 'It.', content: { 'text/plain': { schema: { const: 'not found' } } } };
const notAllowed = { description: 'No.', headers: { Allow: { required: true, schema: { type: 'string' } } } };
const json = {
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
const document = new OpenApiDocument(json);

const jsonType = { 'Content-Type': 'application/json' };
const get = (path: string, headers = {}): RecordedRequest => ({ method: 'GET', path, headers });
const post = (body?: string, headers = jsonType): RecordedRequest => ({
  method: 'POST',
  path: '/items',
  headers,
  ...(body !== undefined && { body }),
});
const answer = (status: number, body = '', headers: Record<string, string> = {}): RecordedResponse => ({
  status,
  body,
  headers: new Headers({ Date: 'now', ...headers }),
});
const item = answer(200, '{"id":1}', { ...jsonType, Etag: '7' });

test.each<[string, RecordedRequest, RecordedResponse]>([
  ['a response', get('/items/1?size=m', { Key: 'abc' }), item],
  ['a HEAD', { ...get('/items/1'), method: 'HEAD' }, answer(200, '', { ...jsonType, Etag: '7' })],
  ['a body', post('7'), answer(200)],
  ['an invalid body that is rejected', post('"7"'), answer(400)],
  ['an unknown path', get('/nowhere'), answer(404, 'not found', { 'Content-Type': 'text/plain' })],
  ['a method that is not allowed', get('/items'), answer(405, '', { Allow: 'POST' })],
])('accepts %s as described', (_name, request, response) => {
  expect(document.findViolations(request, response)).toEqual([]);
});

test.each<[string, RecordedRequest, RecordedResponse, RegExp]>([
  ['an undescribed status', get('/items/1'), answer(204), /does not describe status 204/],
  [
    'an undescribed field',
    get('/items/1'),
    answer(200, '{"id":1,"x":2}', { ...jsonType, Etag: '7' }),
    /additionalProperty":"x/,
  ],
  ['a missing field', get('/items/1'), answer(200, '{}', { ...jsonType, Etag: '7' }), /missingProperty":"id/],
  ['a body that is not JSON', get('/items/1'), answer(200, '{', { ...jsonType, Etag: '7' }), /not JSON/],
  [
    'an undescribed content type',
    get('/items/1'),
    answer(200, 'x', { 'Content-Type': 'text/html', Etag: '7' }),
    /text\/html/,
  ],
  ['a missing header', get('/items/1'), answer(200, '{"id":1}', jsonType), /without Etag/],
  [
    'an undescribed header',
    get('/items/1'),
    answer(400, '', { 'X-New': '1' }),
    /the header x-new is not described/,
  ],
  ['an undescribed body', post('7'), answer(200, '{}', jsonType), /the body is not described/],
  [
    'an invalid query that is accepted',
    get('/items/1?size=l'),
    item,
    /^accepted although invalid: .*parameters\/1/,
  ],
  ['an invalid path that is accepted', get('/items/x'), item, /^accepted although invalid: .*parameters\/0/],
  [
    'an invalid header that is accepted',
    get('/items/1', { Key: 'abcd' }),
    item,
    /^accepted although invalid/,
  ],
  ['an invalid body that is accepted', post('"7"'), answer(200), /^accepted although invalid/],
  ['a missing body that is accepted', post(), answer(200), /^accepted although invalid: no body/],
  [
    'an undescribed type that is accepted',
    post('7', { 'Content-Type': 'text/csv' }),
    answer(200),
    /a body of the type text\/csv/,
  ],
  ['a valid request that gets 400', post('7'), answer(400), /the document allows this request/],
  ['the wrong status for an unknown path', get('/nowhere'), answer(200), /answered 200, not 404/],
  [
    'the wrong text for an unknown path',
    get('/nowhere'),
    answer(404, 'x', { 'Content-Type': 'text/plain' }),
    /const/,
  ],
  [
    'a wrong Allow header',
    get('/items'),
    answer(405, '', { Allow: 'GET, HEAD' }),
    /allows GET,HEAD, not POST/,
  ],
])('reports %s', (_name, request, response, line) => {
  expect(document.findViolations(request, response)).toContainEqual(expect.stringMatching(line));
});

test('reads the first chunk of an event stream', async () => {
  const server = createServer((_request, response) => {
    response.writeHead(200, { 'Content-Type': 'text/event-stream' }).write('data: 1\n\n');
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  expect((await send(`http://127.0.0.1:${port}`, get('/progress'))).body).toBe('data: 1\n\n');
  server.closeAllConnections();
  server.close();
});

test('rejects a document that is not OpenAPI', async () => {
  const server = createServer((_request, response) => {
    response.end(JSON.stringify({ ...json, paths: { '/items': { post: { responses: { x: {} } } } } }));
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await expect(OpenApiDocument.fetch(`http://127.0.0.1:${port}`)).rejects.toThrow('not OpenAPI');
  server.closeAllConnections();
  server.close();
});
