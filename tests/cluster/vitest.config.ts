import { defineConfig } from 'vitest/config';

interface Project {
  name: string;
  include: string[];
  exclude?: string[];
  maxWorkers: number;
}

/** Services are not ready while it runs. */
const disturbing = 'tests/cluster/postgres-restart.test.ts';
const oneByOne = (folder: string): Project[] => [
  { name: folder, include: [`tests/cluster/${folder}/*.test.ts`], maxWorkers: 1 },
];

// The tests that need the cluster. TESTS names the set. `make ci` runs the tests of an overlay that runs already.
// `make ci-loop` and `make prove` run those of a folder, one file at a time, because they deploy or disturb the
// services.
const sets: Record<string, Project[]> = {
  quick: [
    // They mostly wait for the cluster, so more of them run than there are cores.
    { name: 'side by side', include: ['tests/cluster/*.test.ts'], exclude: [disturbing], maxWorkers: 8 },
    { name: 'alone', include: [disturbing], maxWorkers: 1 },
  ],
  loop: oneByOne('loop'),
  prove: oneByOne(`prove/${process.env.OVERLAY}`),
};
const projects = sets[process.env.TESTS ?? 'quick'];
if (!projects) throw new Error(`TESTS must be ${Object.keys(sets).join(', ')}, not ${process.env.TESTS}`);

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
