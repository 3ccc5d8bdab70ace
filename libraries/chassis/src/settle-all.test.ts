import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { settleAll } from './settle-all.ts';

test('waits for all promises before it throws the first error in their order', async () => {
  let ended = false;
  const slow = sleep(50).then(() => {
    ended = true;
    throw new Error('first');
  });
  await expect(settleAll([slow, Promise.reject(new Error('second'))])).rejects.toThrow('first');
  expect(ended).toBe(true);
});
