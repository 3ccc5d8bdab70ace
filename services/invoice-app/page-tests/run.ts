// `make test-page`: where there is no browser, nothing can be tested, and that is said.
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { findChromium } from './browser.ts';

const chromium = findChromium();
if (chromium === undefined) {
  console.log(
    'SKIPPED: no test of the page ran, as there is no Chromium or Chrome here (CHROMIUM=path names one)',
  );
  // The pipeline wants no skips.
  if (process.env.STRICT) process.exitCode = 1;
} else {
  console.log(`the tests of the page, in ${chromium}`);
  const config = join(import.meta.dirname, 'vitest.config.ts');
  try {
    execFileSync('vitest', ['run', '--config', config, ...process.argv.slice(2)], { stdio: 'inherit' });
  } catch {
    process.exitCode = 1;
  }
}
