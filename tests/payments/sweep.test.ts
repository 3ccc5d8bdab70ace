// @module-tag slow
import { expect, inject, test } from 'vitest';
import { findFailpoints } from './failpoints.ts';
import { everyKill, forms, onlyForm, Sweep } from './sweep.ts';

// Kills at each place once, in one form. `make sweep` kills in every form, at the first and the second pass.
test.concurrent.each(forms)(
  'kill -9 at the failpoints breaks no rule: %s form',
  { timeout: 240_000 },
  async (form) => {
    const sweep = await Sweep.start(inject('postgresUrl'), form);
    const wrong: Record<string, string[]> = {};
    const kills = everyKill(form)
      .filter(({ nth }) => nth === 1)
      // Before a failpoint in one form, and after it in the next form.
      .filter(({ name, when }) => {
        const place =
          findFailpoints().findIndex((failpoint) => failpoint.name === name) + (when === 'after' ? 1 : 0);
        return (onlyForm(name) ?? forms[place % forms.length]) === form;
      });
    for (const kill of kills) {
      const found = await sweep.kill(kill);
      if (found.length > 0) wrong[`${kill.service}, ${kill.when} '${kill.name}'`] = found;
    }
    await sweep.close();
    expect(kills.length).toBeGreaterThan(0);
    expect(wrong).toEqual({});
  },
);
