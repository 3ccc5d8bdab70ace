import fc from 'fast-check';
import { commands, forms, mishaps, type Plan, type Simulation } from './simulation.ts';

export interface ModelOptions {
  runs: number;
  seed: number;
  /** Replays one failure; as the failure printed it. */
  path?: string | undefined;
  /** Called after each run. */
  onRun?: () => void;
}

/** A number of steps, one after the other, often none. */
const spans = fc.record({
  from: fc.integer({ min: 1, max: 40 }),
  steps: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 80 })),
});

const plans: fc.Arbitrary<Plan> = fc.record({
  // Of no meaning, but never twice: a provider's n-th decision on an id is always the same.
  firstId: fc.noShrink(fc.integer({ min: 1, max: 2 ** 46 })),
  form: fc.constantFrom(...forms),
  commands: fc
    .array(fc.constantFrom(...commands), { maxLength: 5 })
    .map((others) => (['pay 0'] as Plan['commands']).concat(others)),
  mishaps: fc.array(fc.record({ at: fc.integer({ min: 1, max: 60 }), what: fc.constantFrom(...mishaps) }), {
    maxLength: 5,
  }),
  silence: spans,
  readOnly: spans,
});

/**
 * Runs payments under schedules and mishaps that follow from the seed, and checks the seven rules after each.
 * @returns undefined, or what broke, with the shrunk plan and schedule, and how to run just that again
 */
export async function checkModel(
  simulation: Simulation,
  { runs, seed, path, onRun }: ModelOptions,
): Promise<string | undefined> {
  // Of the last run that failed, which is the shrunk one.
  let trace: readonly string[] | undefined;
  const property = fc.asyncProperty(fc.scheduler(), plans, async (scheduler, plan) => {
    // While a failure is shrunk the same ids come again.
    if (trace !== undefined) await simulation.restartProviders();
    const wrong = await simulation.run(scheduler, plan).catch((error: unknown) => [String(error)]);
    onRun?.();
    if (wrong.length === 0) return;
    trace = simulation.trace;
    throw new Error(wrong.join('\n'));
  });
  const result = await fc.check(property, {
    numRuns: runs,
    seed,
    // To know that it fails is all that `make mutants` wants.
    endOnFailure: path !== undefined || process.env.MODEL_SHRINK === 'off',
    ...(path !== undefined && { path }),
  });
  if (!result.failed) return undefined;
  const [, plan] = result.counterexample ?? [];
  return [
    String(result.errorInstance instanceof Error ? result.errorInstance.message : result.errorInstance),
    JSON.stringify(plan, undefined, 1),
    ...(trace ?? []),
    `again: make model RUNS=1 SEED=${result.seed} AT=${result.counterexamplePath}`,
  ].join('\n');
}
