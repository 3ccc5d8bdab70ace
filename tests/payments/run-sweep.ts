import { startPostgres } from '../../local/postgres.ts';
import { everyKill, forms, Sweep, type Form } from './sweep.ts';

/** Runs every kill of one form, or only those with the text of ONLY in their line. */
async function sweep(postgresUrl: string, form: Form): Promise<{ kills: number; broken: number }> {
  const processes = await Sweep.start(postgresUrl, form);
  const count = { kills: 0, broken: 0 };
  for (const kill of everyKill(form)) {
    const line = `${form}, ${kill.service}, ${kill.when} '${kill.name}' ${kill.nth}`;
    if (!line.includes(process.env.ONLY ?? '')) continue;
    const problems = await processes.kill(kill);
    count.kills += 1;
    if (problems.length > 0) count.broken += 1;
    console.log(
      `${problems.length > 0 ? 'BROKEN' : 'ok'}  ${line}${problems.map((each) => `\n  ${each}`).join('')}`,
    );
  }
  await processes.close();
  return count;
}

/** `make sweep`: runs `kill -9` at every failpoint of a payment, and checks the seven rules after each kill. */
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
