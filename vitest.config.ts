import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['services/**/*.test.ts', 'local/**/*.test.ts'],
    // They need a browser, and half a minute for each: make test-page, make test-install.
    exclude: ['**/node_modules/**', 'services/*/page-tests/**', 'local/test-install/**', '**/._*'],
    globalSetup: ['services/testing/postgres.ts'],
    // More than there are cores: most tests wait for a process, a timeout or the database.
    maxWorkers: 4,
    testTimeout: 30_000,
    hookTimeout: 30_000,
  },
});
