import { defineConfig } from 'vitest/config';

// The tests that need the cluster with an overlay running in it. scripts/ci.sh runs the quick ones in this folder. With
// PROVE=yes it runs those in the folder of the overlay below prove/.
export default defineConfig({
  test: {
    exclude: ['**/._*'],
    include: [
      process.env.PROVE ? `tests/cluster/prove/${process.env.OVERLAY}/*.test.ts` : 'tests/cluster/*.test.ts',
    ],
    // The test files share one cluster, and one could delete objects that another needs.
    fileParallelism: false,
    testTimeout: 60_000,
    hookTimeout: 120_000,
    reporters: ['verbose'],
  },
});
