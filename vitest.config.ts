import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['{services,libraries,tests,scripts,local}/**/*.test.ts'],
    // These tests need a cluster, a browser or minutes: make ci, ci-loop, test-page, test-install, test-service.
    exclude: [
      '**/node_modules/**',
      'tests/{cluster,install,service}/**',
      'services/*/page-tests/**',
      '**/._*',
    ],
    // `make test` leaves out the slow ones, `make test-slow` runs only those. A whole file is slow with the comment
    // `@module-tag slow`, one test with `{ tags: ['slow'] }`.
    tags: [{ name: 'slow', description: 'starts processes, waits for real timeouts, or loads the machine' }],
    globalSetup: ['tests/support/postgres.ts'],
    // Also on fewer cores: most tests wait for a process, a timeout or the database.
    maxWorkers: 6,
    testTimeout: 30_000,
    hookTimeout: 30_000,
  },
});
