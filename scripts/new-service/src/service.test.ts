import { afterAll, beforeAll, expect, test } from 'vitest';
import { ask, startService, type RunningService } from '../../../tests/support/start-service.ts';
import * as service from './service.ts';

// Runs the service on a free port, with its own empty database in a real Postgres.
let running: RunningService;
beforeAll(async () => {
  running = await startService(service);
});
afterAll(() => running[Symbol.asyncDispose]());

const get = (path: string) => ask(`${running.url}${path}`);
const post = (path: string, body: object) =>
  ask(`${running.url}${path}`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
  });

test('names the service in /version', async () => {
  const { body } = await get('/version');
  expect(body).toMatchObject({ service: 'new-service' });
});

test('stores notes and lists the newest first', async () => {
  expect(await post('/notes', { text: 'one' })).toEqual({ status: 201, body: { id: 1, text: 'one' } });
  expect(await post('/notes', { text: 'two' })).toEqual({ status: 201, body: { id: 2, text: 'two' } });
  expect(await get('/notes')).toEqual({
    status: 200,
    body: [
      { id: 2, text: 'two' },
      { id: 1, text: 'one' },
    ],
  });
});

test.each([{}, { text: '' }, { text: 7 }, { text: 'a\0b' }])('rejects %j as a note', async (body) => {
  expect(await post('/notes', body)).toMatchObject({ status: 400 });
});

test('describes its endpoints', async () => {
  const { body } = await get('/openapi.json');
  expect(body).toMatchObject({ paths: { '/notes': { get: {}, post: {} }, '/version': { get: {} } } });
});
