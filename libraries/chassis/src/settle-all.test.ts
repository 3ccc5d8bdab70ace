import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { settleAll } from './settle-all.ts';

test('all have ended before the first failure in their order is thrown', async () => {
  let ended = false;
  const slow = sleep(50).then(() => {
    ended = true;
    throw new Error('first');
  });
  await expect(settleAll([slow, Promise.reject(new Error('second'))])).rejects.toThrow('first');
  expect(ended).toBe(true);
});
