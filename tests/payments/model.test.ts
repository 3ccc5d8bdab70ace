// @module-tag slow
import { inject, afterAll, beforeAll, expect, test } from 'vitest';
import { checkModel } from './model.ts';
import { Simulation } from './simulation.ts';

let simulation: Simulation;
beforeAll(async () => {
  simulation = await Simulation.start(inject('postgresUrl'));
}, 20_000);
afterAll(() => simulation.close());

test('the same seed releases the same steps in the same order', { timeout: 60_000 }, async () => {
  const traces = async (seed: number) => {
    const all: string[] = [];
    await simulation.restartProviders();
    await checkModel(simulation, { runs: 25, seed, onRun: () => void all.push(simulation.trace.join('\n')) });
    return all;
  };
  const first = await traces(1);
  expect(await traces(1)).toEqual(first);
  expect(await traces(2)).not.toEqual(first);
});

// Together these orders exercise each guard that mutants.ts tests with the model. `make prove` runs 1,000 others.
test.for([
  { seed: 4, runs: 20 },
  { seed: 21, runs: 20 },
  { seed: 105, runs: 22 },
])(
  'keeps every rule when processes crash and answers are lost in random order: seed $seed',
  { timeout: 120_000 },
  async ({ seed, runs }) => {
    expect(await checkModel(simulation, { runs, seed })).toBeUndefined();
  },
);
