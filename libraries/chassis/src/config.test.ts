import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { integer, number, readConfig } from './config.ts';

const DATABASE_URL = 'postgres://user:secret@host:5432/database';
const own = {
  PORT: integer(0, 65_535).default(8081),
  RATE: number('a rate', (rate) => rate >= 0).default(0),
};
const read = (env: Record<string, string>) => readConfig(own, { DATABASE_URL, ...env });

test('uses defaults, and the values set', () => {
  expect(read({})).toMatchObject({
    PORT: 8081,
    RATE: 0,
    ENVIRONMENT: 'prod',
    ALLOW_RESET: false,
    LOG_LEVEL: 'info',
    SHUTDOWN_DELAY_MS: 0,
    databaseUrl: DATABASE_URL,
  });
  expect(read({ PORT: '1', RATE: '0.5', ALLOW_RESET: 'true', ENVIRONMENT: 'dev' })).toMatchObject({
    PORT: 1,
    RATE: 0.5,
    ALLOW_RESET: true,
    inProd: undefined,
  });
});

test('treats an empty variable as unset', () => {
  expect(read({ PORT: '', LOG_LEVEL: '', DATABASE_URL_FILE: '' })).toMatchObject({
    PORT: 8081,
    LOG_LEVEL: 'info',
  });
});

test.each([
  [{ PORT: 'http' }, 'PORT must be a whole number from 0 to 65535, not "http"'],
  [{ PORT: '65536' }, 'PORT must be a whole number from 0 to 65535, not "65536"'],
  [{ PORT: '1.5' }, 'PORT must be a whole number from 0 to 65535, not "1.5"'],
  [{ PORT: ' ' }, 'PORT must be a whole number from 0 to 65535, not " "'],
  [{ RATE: '-1' }, 'RATE must be a rate, not "-1"'],
  [{ RATE: 'NaN' }, 'RATE must be a rate, not "NaN"'],
  [{ ALLOW_RESET: 'yes' }, 'ALLOW_RESET must be one of true, false, not "yes"'],
  [{ ENVIRONMENT: 'production' }, 'ENVIRONMENT must be one of dev, prod, not "production"'],
  [{ ENVIRONMENT: 'prod', ALLOW_RESET: 'true' }, 'ALLOW_RESET must be false when ENVIRONMENT is prod'],
  [{ ALLOW_RESET: 'true' }, 'ALLOW_RESET must be false when ENVIRONMENT is unset (default: prod)'],
  [
    { ENVIRONMENT: '', ALLOW_RESET: 'true' },
    'ALLOW_RESET must be false when ENVIRONMENT is unset (default: prod)',
  ],
  [{ SHUTDOWN_DELAY_MS: '-1' }, 'SHUTDOWN_DELAY_MS must be a whole number from 0 to 10000, not "-1"'],
  [{ DATABASE_URL: '' }, 'DATABASE_URL or DATABASE_URL_FILE must be set, and only one of them'],
  [{ DATABASE_URL_FILE: '/a/file' }, 'DATABASE_URL or DATABASE_URL_FILE must be set, and only one of them'],
  // The value is not shown, because it may hold a password.
  [
    { DATABASE_URL: 'user:secret@host' },
    'DATABASE_URL must hold a URL such as postgres://user:password@host:5432/database',
  ],
])('rejects %o with a one-line message', (env: Record<string, string>, message) => {
  expect(() => read(env)).toThrow(expect.objectContaining({ name: 'ConfigError', message }));
});

test('reads the database URL from a file', () => {
  const folder = mkdtempSync(join(tmpdir(), 'payloop-config-'));
  try {
    const file = join(folder, 'url');
    writeFileSync(file, `${DATABASE_URL}\n`);
    expect(read({ DATABASE_URL: '', DATABASE_URL_FILE: file }).databaseUrl).toBe(DATABASE_URL);
    expect(() => read({ DATABASE_URL: '', DATABASE_URL_FILE: join(folder, 'none') })).toThrow(
      /^DATABASE_URL_FILE must name a readable file: ENOENT/,
    );
  } finally {
    rmSync(folder, { recursive: true });
  }
});
