import { startPostgres } from '../../local/postgres.ts';
import { everyKill, forms, Sweep, type Form } from './sweep.ts';

/** All kills of one form; ONLY chooses those whose line has it. */
async function sweep(postgresUrl: string, form: Form): Promise<{ kills: number; broken: number }> {
  const processes = await Sweep.start(postgresUrl, form);
  const count = { kills: 0, broken: 0 };
  for (const kill of everyKill(form)) {
    const line = `${form}, ${kill.service}, ${kill.when} '${kill.name}' ${kill.nth}`;
    if (!line.includes(process.env.ONLY ?? '')) continue;
    const wrong = await processes.kill(kill);
    count.kills += 1;
    if (wrong.length > 0) count.broken += 1;
    console.log(
      `${wrong.length > 0 ? 'BROKEN' : 'ok'}  ${line}${wrong.map((each) => `\n  ${each}`).join('')}`,
    );
  }
  await processes.close();
  return count;
}

/** `make sweep`: `kill -9` at every step of a payment, and the seven rules after each. */
async function main(): Promise<void> {
  const postgres = await startPostgres({ databases: [] });
  const start = performance.now();
  const counts = await Promise.all(forms.map((form) => sweep(postgres.url('postgres'), form)));
  const sum = (key: 'kills' | 'broken') => counts.reduce((total, count) => total + count[key], 0);
  const seconds = Math.round((performance.now() - start) / 1000);
  console.log(`sweep: ${sum('kills')} kills, ${sum('broken')} with a rule broken, ${seconds} s`);
  process.exitCode = sum('broken') === 0 ? 0 : 1;
  await postgres.stop();
}

await main();
