import { expect, test } from 'vitest';
import { reduceError } from './log.ts';

test('of an error only its type, message, code and stack are logged', () => {
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

test('an error without a message has its code as one, and anything else its text', () => {
  expect(reduceError(Object.assign(new Error(), { code: 'ECONNREFUSED' }))).toMatchObject({
    message: 'ECONNREFUSED',
  });
  expect(reduceError('just text')).toEqual({ message: 'just text' });
});
