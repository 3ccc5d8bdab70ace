import { once } from 'node:events';
import { connect, type AddressInfo } from 'node:net';
import express from 'express';
import { expect, test } from 'vitest';
import { readPages, sendPages } from './pagination.ts';

test('a client that reads nothing for 30 s is disconnected', async () => {
  const ended = Promise.withResolvers<unknown>();
  const timeouts: number[] = [];
  const server = express()
    .get('/', (_request, response) => {
      const setTimeout = response.setTimeout.bind(response);
      // A hundredth of the time, to keep the test short.
      response.setTimeout = (ms: number) => {
        timeouts.push(ms);
        return setTimeout(ms / 100);
      };
      const pages = readPages({}, async (after) => [{ id: after + 1, text: 'x'.repeat(100_000) }]);
      sendPages(response, pages, (row) => row).then(ended.resolve, ended.resolve);
    })
    .listen(0, '127.0.0.1');
  await once(server, 'listening');
  const socket = connect((server.address() as AddressInfo).port, '127.0.0.1').on('error', () => {});
  try {
    socket.write('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n');
    await once(socket, 'data');
    socket.pause();
    expect(await ended.promise).toMatchObject({ code: 'ERR_STREAM_PREMATURE_CLOSE' });
    expect(timeouts).toEqual([30_000]);
  } finally {
    socket.destroy();
    server.closeAllConnections();
    server.close();
  }
});
