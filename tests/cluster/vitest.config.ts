import { defineConfig } from 'vitest/config';

interface Project {
  name: string;
  include: string[];
  exclude?: string[];
  maxWorkers: number;
}

/**
 * These save files, restart pods or deploy again, so they run one at a time, after the others. The last one leaves pods
 * with an open inspector.
 */
const disturbing: Project[] = ['postgres-restart', 'live-update', 'debugger'].map((name) => ({
  name,
  include: [`tests/cluster/${name}.test.ts`],
  maxWorkers: 1,
}));

// The tests that need the cluster with an overlay running in it. scripts/ci.sh runs the quick ones in this folder. With
// PROVE=yes it runs those in the folder of the overlay below prove/.
const projects: Project[] = process.env.PROVE
  ? [{ name: 'prove', include: [`tests/cluster/prove/${process.env.OVERLAY}/*.test.ts`], maxWorkers: 1 }]
  : [
      {
        name: 'side by side',
        include: ['tests/cluster/*.test.ts'],
        exclude: disturbing.flatMap(({ include }) => include),
        maxWorkers: 3,
      },
      ...disturbing,
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
