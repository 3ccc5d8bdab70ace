import { expect, inject, test } from 'vitest';
import { everyKill, forms, Sweep } from './sweep.ts';

// The first time each step comes; `make sweep` also kills at the second.
test.concurrent.each(forms)(
  'kill -9 at every step breaks no rule, %s form',
  { timeout: 120_000 },
  async (form) => {
    const sweep = await Sweep.start(inject('postgresUrl'), form);
    const wrong: Record<string, string[]> = {};
    const kills = everyKill().filter(({ nth }) => nth === 1);
    for (const kill of kills) {
      const found = await sweep.kill(kill);
      if (found.length > 0) wrong[`${kill.service}, ${kill.when} '${kill.name}'`] = found;
    }
    await sweep.close();
    expect(kills.length).toBeGreaterThan(0);
    expect(wrong).toEqual({});
  },
);
