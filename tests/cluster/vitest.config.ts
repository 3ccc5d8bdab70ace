import { defineConfig } from 'vitest/config';

/** These save files, restart pods or deploy again, so they run one at a time, after the others. */
const disturbing = ['debugger', 'live-update', 'postgres-restart'].map(
  (name) => `tests/cluster/${name}.test.ts`,
);

// The tests that need the cluster with an overlay running in it. scripts/ci.sh runs the quick ones in this folder. With
// PROVE=yes it runs those in the folder of the overlay below prove/.
const alone = { maxWorkers: 1, fileParallelism: false };
const projects = process.env.PROVE
  ? [{ name: 'prove', include: [`tests/cluster/prove/${process.env.OVERLAY}/*.test.ts`], ...alone }]
  : [
      { name: 'side by side', include: ['tests/cluster/*.test.ts'], exclude: disturbing, maxWorkers: 3 },
      { name: 'alone', include: disturbing, ...alone },
    ];

export default defineConfig({
  test: {
    reporters: ['verbose'],
    projects: projects.map(({ exclude = [], ...project }, groupOrder) => ({
      test: {
        ...project,
        exclude: ['**/._*', ...exclude],
        sequence: { groupOrder },
        testTimeout: 60_000,
        hookTimeout: 120_000,
      },
    })),
  },
});
