// @module-tag slow
import { expect, inject, test } from 'vitest';
import { findSteps } from './steps.ts';
import { everyKill, forms, onlyForm, Sweep } from './sweep.ts';

// Each place once, in one of the forms; `make sweep` has each in every form, and the second time as well.
test.concurrent.each(forms)(
  'kill -9 at the steps breaks no rule, %s form',
  { timeout: 240_000 },
  async (form) => {
    const sweep = await Sweep.start(inject('postgresUrl'), form);
    const wrong: Record<string, string[]> = {};
    const kills = everyKill(form)
      .filter(({ nth }) => nth === 1)
      // Before a step in one form and after it in the next.
      .filter(({ name, when }) => {
        const place = findSteps().findIndex((step) => step.name === name) + (when === 'after' ? 1 : 0);
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
