import { expect, test } from 'vitest';
import { createOutput, readable, wantsColour } from './output.ts';

function collect(colour: boolean) {
  const written: string[] = [];
  const output = createOutput(['up', 'invoice-app'], { write: (text) => written.push(text), colour });
  return { written, output };
}

test('puts a name before every line, in colour only if that is wanted', () => {
  const plain = collect(false);
  plain.output('up')('one\ntwo');
  plain.output('invoice-app')('three');
  expect(plain.written).toEqual(['up          | one\n', 'up          | two\n', 'invoice-app | three\n']);

  const coloured = collect(true);
  coloured.output('up')('one');
  expect(coloured.written).toEqual(['\u001B[36mup          |\u001B[39m one\n']);
});

test('uses colour only on a terminal, and not with NO_COLOR', () => {
  expect(wantsColour({ isTTY: true }, {})).toBe(true);
  expect(wantsColour({ isTTY: true }, { NO_COLOR: '1' })).toBe(false);
  expect(wantsColour({}, {})).toBe(false);
});

test('formats JSON log lines with the stack of their error, and leaves other lines as they are', () => {
  const event = {
    level: 'warn',
    time: '2026-01-02T03:04:05.678Z',
    service: 'invoice-app',
    path: '/a b',
    status: 502,
  };
  const err = { type: 'Error', message: 'boom', stack: 'Error: boom\n    at main.ts:1' };
  const line = JSON.stringify({ ...event, requestId: '0123456789abcdef', err, msg: 'request' });
  expect(readable(line).replace(/^\S+/, 'CLOCK').split('\n')).toEqual([
    'CLOCK warn request path="/a b" status=502 requestId=01234567',
    '  Error: boom',
    '      at main.ts:1',
  ]);
  for (const other of ['plain', '{"level":broken', '{}', 'a\ttab']) expect(readable(other)).toBe(other);
});

test.each([
  ['in a line', '\u001B[2Jgone', '\\x1b[2Jgone'],
  ['of one byte', '\u009B31mred\u007F', '\\x9b31mred\\x7f'],
  [
    'in a log',
    JSON.stringify({ level: 'info', time: 0, msg: 'm', path: '/\u001B]0;t\u0007' }),
    'path=/\\x1b]0;t\\x07',
  ],
  [
    'in an error',
    JSON.stringify({ level: 'info', time: 0, msg: 'm', err: { stack: 'a\r\u001B[1mb' } }),
    'a\\x0d\\x1b[1mb',
  ],
])('keeps escape sequences %s from the terminal', (_where, line, shown) => {
  expect(readable(line)).toContain(shown);
  expect(readable(line)).not.toMatch(/[^\P{Cc}\n]/u);
});
