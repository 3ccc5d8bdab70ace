import { defineConfig } from 'vitest/config';

// The tests that need the cluster with an overlay running in it: scripts/ci.sh runs them, the quick ones here or
// with PROVE=yes those of prove/, in the folder of the overlay that they need.
export default defineConfig({
  test: {
    exclude: ['**/._*'],
    include: [
      process.env.PROVE ? `tests/cluster/prove/${process.env.OVERLAY}/*.test.ts` : 'tests/cluster/*.test.ts',
    ],
    // One cluster: what one test deletes, another would miss.
    fileParallelism: false,
    testTimeout: 60_000,
    hookTimeout: 120_000,
    reporters: ['verbose'],
  },
});
