// `make test-page` runs the tests of the page, or prints that it skips them because there is no browser.
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { findChromium } from './browser.ts';

const chromium = findChromium();
if (chromium === undefined) {
  console.log(
    'SKIPPED the tests of the page: found no Chromium or Chrome. Install one, or set CHROMIUM to its path.',
  );
  // The pipeline allows no skips.
  if (process.env.STRICT) process.exitCode = 1;
} else {
  console.log(`Testing the page in ${chromium}`);
  const config = join(import.meta.dirname, 'vitest.config.ts');
  try {
    execFileSync('vitest', ['run', '--config', config, ...process.argv.slice(2)], { stdio: 'inherit' });
  } catch {
    process.exitCode = 1;
  }
}
