import fc from 'fast-check';
import { commands, faults, forms, type Plan, type Simulation } from './simulation.ts';

export interface ModelOptions {
  runs: number;
  seed: number;
  /** Replays one failure: the AT that it printed. */
  path?: string | undefined;
  /** Called after each run. */
  onRun?: () => void;
}

/** A range of consecutive steps, often empty. */
const ranges = fc.record({
  from: fc.integer({ min: 1, max: 40 }),
  steps: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 80 })),
});

const plans: fc.Arbitrary<Plan> = fc.record({
  // Random, so that no two runs share ids: a provider's n-th decision on an id is always the same.
  firstId: fc.noShrink(fc.integer({ min: 1, max: 2 ** 46 })),
  form: fc.constantFrom(...forms),
  commands: fc
    .array(fc.constantFrom(...commands), { maxLength: 5 })
    .map((others) => (['pay 0'] as Plan['commands']).concat(others)),
  faults: fc.array(fc.record({ at: fc.integer({ min: 1, max: 60 }), fault: fc.constantFrom(...faults) }), {
    maxLength: 5,
  }),
  silence: ranges,
  readOnly: ranges,
});

/**
 * Runs payments under schedules and faults that follow from the seed, and checks the seven rules after each run.
 * @returns undefined, or the first failure: the problems, the shrunk plan and schedule, and the command to replay it
 */
export async function checkModel(
  simulation: Simulation,
  { runs, seed, path, onRun }: ModelOptions,
): Promise<string | undefined> {
  // The trace of the last failed run, which is the shrunk one.
  let trace: readonly string[] | undefined;
  const property = fc.asyncProperty(fc.scheduler(), plans, async (scheduler, plan) => {
    // Shrinking reuses the ids, so the providers must forget their decisions.
    if (trace !== undefined) await simulation.restartProviders();
    const problems = await simulation.run(scheduler, plan).catch((error: unknown) => [String(error)]);
    onRun?.();
    if (problems.length === 0) return;
    trace = simulation.trace;
    throw new Error(problems.join('\n'));
  });
  const result = await fc.check(property, {
    numRuns: runs,
    seed,
    // `make mutants` only needs to know that a run fails.
    endOnFailure: path !== undefined || process.env.MODEL_SHRINK === 'off',
    ...(path !== undefined && { path }),
  });
  if (!result.failed) return undefined;
  const [, plan] = result.counterexample ?? [];
  return [
    String(result.errorInstance instanceof Error ? result.errorInstance.message : result.errorInstance),
    JSON.stringify(plan, undefined, 1),
    ...(trace ?? []),
    `to replay: make model RUNS=1 SEED=${result.seed} AT=${result.counterexamplePath}`,
  ].join('\n');
}
