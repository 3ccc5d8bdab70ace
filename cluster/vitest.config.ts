import { defineConfig } from 'vitest/config';

// The tests that need the cluster with an overlay running in it: cluster/ci.sh runs them.
export default defineConfig({
  test: {
    include: ['cluster/*.test.ts'],
    // One cluster: what one test deletes, another would miss.
    fileParallelism: false,
    testTimeout: 60_000,
    hookTimeout: 120_000,
    reporters: ['verbose'],
  },
});
