// `make screenshots` takes pictures of the page during a run and with declined invoices.
import { statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';
import { startPostgres } from '../../../local/postgres.ts';
import { startApp, startProvider } from '../../../tests/support/app-and-provider.ts';
import { findChromium, launch, open } from './browser.ts';

const docs = resolve(import.meta.dirname, '../../../docs');

/** Waits until `condition` is true in the page. */
async function until(page: Page, condition: string): Promise<void> {
  while (!(await page.evaluate<boolean>(condition))) await page.waitForTimeout(20);
}

/** Takes a picture of Tilt's page if Tilt runs, as under `make up`. */
async function takeTilt(browser: Browser): Promise<void> {
  const url = 'http://localhost:10350/overview';
  const runs = await fetch(url).then(
    ({ ok }) => ok,
    () => false,
  );
  if (!runs) {
    console.log('SKIPPED docs/tilt.png: Tilt does not run');
    return;
  }
  const page = await browser.newPage({ viewport: { width: 1500, height: 900 } });
  await page.goto(url);
  await page.getByText('payment-test').first().waitFor();
  await page.waitForTimeout(2_000);
  const path = join(docs, 'tilt.png');
  await page.screenshot({ path });
  console.log(`${path}: ${Math.round(statSync(path).size / 1000)} kB`);
  await page.close();
}

async function main(): Promise<void> {
  if (findChromium() === undefined) {
    console.log(
      'SKIPPED the screenshots: found no Chromium or Chrome. Install one, or set CHROMIUM to its path.',
    );
    return;
  }
  const postgres = await startPostgres({ databases: [] });
  const postgresUrl = postgres.url('postgres');
  const faults = { FAILURE_RATE: '0.04', FAULTS: 'late=0.4', FAULT_SEED: '7' };
  const provider = await startProvider(faults, {}, postgresUrl);
  const app = await startApp(provider, { SEED_INVOICES: '20000' }, {}, postgresUrl);
  const browser = await launch();

  async function take(
    name: string,
    options: BrowserContextOptions,
    show: (page: Page) => Promise<void>,
  ): Promise<void> {
    // Without transitions, as a picture in the middle of one is wrong.
    const window = await open(browser, app.url, { reducedMotion: 'reduce', ...options });
    const { page } = window;
    await until(page, `document.querySelector('#rows td.id')?.textContent === 'I1'`);
    await show(page);
    const path = join(docs, `page-${name}.png`);
    await page.screenshot({ path });
    console.log(`${path}: ${Math.round(statSync(path).size / 1000)} kB`);
    await window.close();
  }

  const declined = async (page: Page) => {
    await until(page, `pay.textContent.startsWith('Pay ')`);
    await page.getByRole('radio', { name: /^Declined/ }).check({ force: true });
    await until(page, `document.querySelector('#rows tr')?.dataset.state === 'declined'`);
  };
  await take('light', { colorScheme: 'light', viewport: { width: 1200, height: 860 } }, async (page) => {
    await page.locator('#pay').click();
    await until(page, `Number(document.getElementById('progress').ariaValueNow) > 5000`);
    // Scrolls to the end of a paid batch that is followed by one being paid.
    await page.evaluate(`(async () => {
      for (let at = 1000; at < 20000; at += 1000) {
        const { rows } = await (await fetch('/rows?limit=2&from=' + (at - 1))).json();
        if (rows[0].state === 'paid' && rows[1].state === 'paying') return void (scroller.scrollTop = (at - 5) * 44);
      }
    })()`);
    await page.mouse.move(0, 0);
    await page.waitForTimeout(300);
  });
  await take('dark', { colorScheme: 'dark', viewport: { width: 1200, height: 860 } }, declined);
  const phone = { viewport: { width: 360, height: 780 }, deviceScaleFactor: 2 };
  await take('phone', { colorScheme: 'light', ...phone }, async (page) => {
    await declined(page);
    await page.evaluate('scrollTo(0, 300)');
    await page.waitForTimeout(200);
  });

  await takeTilt(browser);
  await browser.close();
  await app[Symbol.asyncDispose]();
  await provider[Symbol.asyncDispose]();
  await postgres.stop();
}

await main();
