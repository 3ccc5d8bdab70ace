import { expect, test } from 'vitest';
import { reduceError } from './log.ts';

test('only the type, message, code and stack of an error are logged', () => {
  const error = Object.assign(new TypeError('failed'), {
    code: 'ECONNRESET',
    config: { headers: { Authorization: 'Bearer verysecret' } },
  });
  expect(reduceError(error)).toEqual({
    type: 'TypeError',
    message: 'failed',
    code: 'ECONNRESET',
    stack: expect.stringContaining('failed'),
  });
});

test('an error without a message is logged with its code, and a thrown value that is not an error as text', () => {
  expect(reduceError(Object.assign(new Error(), { code: 'ECONNREFUSED' }))).toMatchObject({
    message: 'ECONNREFUSED',
  });
  expect(reduceError('just text')).toEqual({ message: 'just text' });
});
