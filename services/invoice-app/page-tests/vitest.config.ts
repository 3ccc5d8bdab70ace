import { defineConfig } from 'vitest/config';

// The tests of the page, in a real browser: `make test-page`.
export default defineConfig({
  test: {
    dir: import.meta.dirname,
    exclude: ['**/._*'],
    globalSetup: ['tests/support/postgres.ts'],
    // One at a time: each measures how the page holds up.
    fileParallelism: false,
    testTimeout: 120_000,
    hookTimeout: 120_000,
    reporters: ['verbose'],
  },
});
