import { randomInt } from 'node:crypto';
import { startPostgres } from '../../local/postgres.ts';
import { checkModel } from './model.ts';
import { Simulation } from './simulation.ts';

/** How often to print progress, in milliseconds. */
const progressInterval = 10_000;

/** `make model`: runs the model RUNS times from SEED. AT replays a failure. */
async function main(): Promise<void> {
  const runs = Number(process.env.RUNS || 1_000);
  const seed = Number(process.env.SEED || randomInt(2 ** 31));
  const postgres = await startPostgres({ databases: [] });
  const simulation = await Simulation.start(postgres.url('postgres'));
  const start = performance.now();
  const seconds = () => ((performance.now() - start) / 1000).toFixed(1);
  let done = 0;
  let steps = 0;
  let printedAt = start;
  const onRun = () => {
    done += 1;
    steps += simulation.trace.length;
    if (performance.now() - printedAt < progressInterval) return;
    printedAt = performance.now();
    console.log(`${done} runs, ${seconds()} s`);
  };
  console.log(`model: ${runs} runs, seed ${seed}`);
  const failure = await checkModel(simulation, { runs, seed, path: process.env.AT || undefined, onRun });
  const size = `seed ${seed}: ${done} runs, ${steps} steps, ${seconds()} s`;
  console.log(failure === undefined ? `${size}: no rule broken` : `${size}: broken\n${failure}`);
  process.exitCode = failure === undefined ? 0 : 1;
  await simulation.close();
  await postgres.stop();
}

await main();
