import { once } from 'node:events';
import { request } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import express, { type ErrorRequestHandler } from 'express';
import type { AddressInfo } from 'node:net';
import { expect, test } from 'vitest';
import type { HttpError } from './http-error.ts';
import { limitRequests } from './limit.ts';

test('limits the requests in flight; an answered or abandoned request makes room for the next', async () => {
  const waiting: (() => void)[] = [];
  const refuse: ErrorRequestHandler = (error: HttpError, _request, response, _next) =>
    void response.status(error.status).json({ error: error.message, retryAfter: error.retryAfter });
  const server = express()
    .get(
      '/',
      limitRequests(2, 'lists'),
      (_request, response) => void waiting.push(() => response.end('here')),
    )
    .use(refuse)
    .listen(0, '127.0.0.1');
  await once(server, 'listening');
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  try {
    const first = fetch(url);
    const leaving = request(url).on('error', () => {});
    leaving.end();
    await expect.poll(() => waiting.length).toBe(2);
    const refused = await fetch(url);
    expect(refused.status).toBe(503);
    expect(await refused.json()).toEqual({ error: 'too many lists at once, try again later', retryAfter: 5 });
    leaving.destroy();
    const tries: Promise<Response>[] = [];
    await expect
      .poll(async () => {
        const next = fetch(url);
        tries.push(next);
        await Promise.race([next, sleep(100)]);
        return waiting.length;
      })
      .toBe(3);
    for (const end of waiting) end();
    expect(await (await first).text()).toBe('here');
    const texts = await Promise.all(tries.map(async (each) => (await each).text()));
    expect(texts.filter((text) => text === 'here')).toHaveLength(1);
  } finally {
    server.closeAllConnections();
    server.close();
  }
});
