import { expect, inject, test } from 'vitest';
import { everyKill, forms, Sweep } from './sweep.ts';

// Each place once, in one form or the other; `make sweep` has each in both forms, and the second time as well.
test.concurrent.each(forms)(
  'kill -9 at the steps breaks no rule, %s form',
  { timeout: 240_000 },
  async (form) => {
    const sweep = await Sweep.start(inject('postgresUrl'), form);
    const wrong: Record<string, string[]> = {};
    const kills = everyKill()
      .filter(({ nth }) => nth === 1)
      // Before one step and after the next.
      .filter((_kill, index) => (index + (index >> 1)) % forms.length === forms.indexOf(form));
    for (const kill of kills) {
      const found = await sweep.kill(kill);
      if (found.length > 0) wrong[`${kill.service}, ${kill.when} '${kill.name}'`] = found;
    }
    await sweep.close();
    expect(kills.length).toBeGreaterThan(0);
    expect(wrong).toEqual({});
  },
);
