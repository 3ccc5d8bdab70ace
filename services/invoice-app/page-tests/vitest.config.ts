import { defineConfig } from 'vitest/config';

// Tests of the page in a real browser, run by `make test-page`.
export default defineConfig({
  test: {
    dir: import.meta.dirname,
    exclude: ['**/._*'],
    globalSetup: ['tests/support/postgres.ts'],
    // One file at a time, because the tests measure how fast the page is.
    fileParallelism: false,
    testTimeout: 120_000,
    hookTimeout: 120_000,
    reporters: ['verbose'],
  },
});
