import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { Client } from 'pg';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import { createDatabase } from '../../../tests/support/database.ts';
import { post, type RunningService } from '../../../tests/support/start-service.ts';
import { connect, startApp, startProvider } from '../../../tests/support/app-and-provider.ts';
import { launch, longestTask, open, ownComplaints, type Watched } from './browser.ts';

/** How long to poll the page for the expected content, and how often, in milliseconds. */
const patience = { timeout: 20_000, interval: 50 };

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

/** Opens a window and expects no complaints of the page when it is closed. */
async function visit({ url }: { url: string }, options: BrowserContextOptions = {}) {
  const watched = await open(browser, url, options);
  return Object.assign(watched, {
    async [Symbol.asyncDispose]() {
      await watched.close();
      expect(ownComplaints(watched)).toEqual([]);
    },
  });
}

const text = (page: Page, selector: string) => page.locator(selector).first().innerText();
async function shows(page: Page, selector: string, expected: string | RegExp): Promise<void> {
  await expect.poll(() => text(page, selector), patience).toMatch(expected);
}
const clickPay = (page: Page) => page.getByRole('button', { name: /^Pay / }).click();
const states = async (page: Page) => page.locator('#rows td.state').allInnerTexts();

describe('paying', () => {
  test('with a click updates the headline, the sums and the states, and disables the button', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    await using window = await visit(app);
    const { page, complaints } = window;
    await shows(page, '#headline', '0 of 3 invoices paid.');
    await expect.poll(() => states(page), patience).toEqual(['Unpaid', 'Unpaid', 'Unpaid']);
    await clickPay(page);
    await shows(page, '#headline', 'All 3 invoices are paid.');
    await shows(page, '#pay', 'Nothing to pay');
    expect(await page.locator('#pay').getAttribute('aria-disabled')).toBe('true');
    await expect.poll(() => states(page), patience).toEqual(['Paid', 'Paid', 'Paid']);
    expect(await page.locator('#sums li').allInnerTexts()).toEqual([
      expect.stringMatching(/^DKK\s+kr\s66\.13\s+1 paid\s+kr\s0\.00\s+0 unpaid$/),
      expect.stringMatching(/^EUR\s+€12\.15\s+1 paid\s+€0\.00\s+0 unpaid$/),
      expect.stringMatching(/^GBP\s+£10\.25\s+1 paid\s+£0\.00\s+0 unpaid$/),
    ]);
    expect(await page.title()).toContain('payloop');
    expect(complaints).toEqual([]);
  });

  test('with the keyboard alone is possible, and so is scrolling to the end of the list', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider, { SEED_INVOICES: '500' });
    await using window = await visit(app);
    const { page } = window;
    await shows(page, '#pay', 'Pay 500 invoices');
    await page.keyboard.press('Tab');
    expect(await page.evaluate('document.activeElement.id')).toBe('pay');
    await page.keyboard.press('Enter');
    await shows(page, '#headline', 'All 500 invoices are paid.');
    // The button keeps the focus, although it was disabled for a moment.
    expect(await page.evaluate('document.activeElement.id')).toBe('pay');
    await page.keyboard.press('Tab');
    expect(await page.evaluate('document.activeElement.id')).toBe('reset');
    await page.keyboard.press('Tab');
    await page.keyboard.press('ArrowRight');
    await shows(page, '#empty', 'No invoice matches this filter.');
    await page.keyboard.press('ArrowLeft');
    await page.keyboard.press('Tab');
    expect(await page.evaluate('document.activeElement.id')).toBe('scroller');
    await page.keyboard.press('End');
    await expect.poll(() => page.locator('#rows td.id').allInnerTexts(), patience).toContain('I500');
    expect(await page.locator('#rows tr', { hasText: 'I500' }).getAttribute('aria-rowindex')).toBe('501');
    expect(await page.locator('#table').getAttribute('aria-rowcount')).toBe('501');
  });

  test('again during a run sends no second request', async () => {
    await using provider = await startProvider({ FAULTS: 'late=1' });
    await using app = await startApp(provider);
    await using window = await visit(app);
    const { page } = window;
    let requests = 0;
    page.on('request', (request) => {
      if (request.method() === 'POST') requests += 1;
    });
    await shows(page, '#pay', 'Pay 3 invoices');
    await clickPay(page);
    await shows(page, '#pay', 'Paying…');
    await shows(page, '#detail', 'A run is in progress and pays every unpaid invoice.');
    await page.locator('#pay').click({ force: true });
    // The late responses leave all three unknown. A second request would have been sent by then.
    await shows(page, '#pay', 'Pay 3 invoices');
    expect(requests).toBe(1);
  });
});

describe('resetting', () => {
  test('is offered if the server allows it, and makes the invoices unpaid', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    await using window = await visit(app);
    const { page } = window;
    await shows(page, '#detail', 'To pay: kr66.13, €12.15, £10.25.'.replace('kr', 'kr\u00a0'));
    await clickPay(page);
    await shows(page, '#pay', 'Nothing to pay');
    await page.getByRole('button', { name: 'Reset' }).click();
    await shows(page, '#headline', '0 of 3 invoices paid.');
    await expect.poll(() => states(page), patience).toEqual(['Unpaid', 'Unpaid', 'Unpaid']);
    await shows(page, '#pay', 'Pay 3 invoices');
  });

  test('shows the reason if it fails', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    await using window = await visit(app);
    const { page } = window;
    await provider.stop();
    await page.getByRole('button', { name: 'Reset' }).click();
    await shows(page, '#notice', /The invoices were not reset\..+provider/s);
    expect(await page.locator('#reset').getAttribute('aria-disabled')).toBe('false');
  });

  test('is not offered if the server does not allow it', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider, { ALLOW_RESET: 'false' });
    await using window = await visit(app);
    expect(await window.page.locator('#reset').isVisible()).toBe(false);
  });
});

describe('narrow windows', () => {
  test.for([360, 700, 721, 775, 830, 860])('show every cell in full at %i px', async (width) => {
    await using provider = await startProvider({ FAILURE_RATE: '0.5', FAULT_SEED: '2' });
    await using app = await startApp(provider, { SEED_INVOICES: '12' });
    await using window = await visit(app, { viewport: { width, height: 800 } });
    const { page } = window;
    await clickPay(page);
    await shows(page, '#detail', /declined/);
    await expect.poll(() => states(page), patience).toContain('Declined');
    const places = await page.evaluate<{ right: number; currencyAt: number[] }>(`({
      right: Math.max(...[...document.querySelectorAll('#rows td')].map((cell) => cell.getBoundingClientRect().right)),
      currencyAt: [...document.querySelectorAll('#rows td.currency')].map((cell) => cell.getBoundingClientRect().left),
    })`);
    expect(places.right).toBeLessThanOrEqual(width);
    expect(new Set(places.currencyAt).size).toBe(1);
    expect(await page.evaluate('scroller.scrollWidth <= scroller.clientWidth')).toBe(true);
  });
});

describe('declined invoices', () => {
  test('show their time without a reason that only repeats the state, and can be paid again', async () => {
    await using provider = await startProvider({ FAILURE_RATE: '1' });
    await using app = await startApp(provider);
    await using window = await visit(app);
    const { page } = window;
    await clickPay(page);
    await shows(page, '#detail', '3 declined. Paying again makes a new attempt for each.');
    await page.getByRole('radio', { name: /^Declined/ }).check({ force: true });
    await expect
      .poll(() => page.locator('#rows td.why').allInnerTexts(), patience)
      .toEqual(Array.from({ length: 3 }, () => expect.stringMatching(/^\d\d:\d\d:\d\d$/)));
    await shows(page, '#pay', 'Pay 3 invoices');
    expect(await page.locator('#pay').getAttribute('aria-disabled')).toBe('false');
  });

  test('can be listed alone, and the headline counts the paid ones', async () => {
    await using provider = await startProvider({ FAILURE_RATE: '0.5', FAULT_SEED: '1' });
    await using app = await startApp(provider, { SEED_INVOICES: '200' });
    await using window = await visit(app);
    const { page } = window;
    await clickPay(page);
    await shows(page, '#detail', /\d+ declined\. Paying again/);
    const declined = Number(/(\d+) declined/.exec(await text(page, '#detail'))?.[1]);
    expect(declined).toBeGreaterThan(50);
    expect(declined).toBeLessThan(150);
    await page.getByRole('radio', { name: /^Declined/ }).check({ force: true });
    await expect
      .poll(() => states(page).then((all) => new Set(all)), patience)
      .toEqual(new Set(['Declined']));
    expect(await page.locator('#table').getAttribute('aria-rowcount')).toBe(`${declined + 1}`);
    await shows(page, '#headline', `${200 - declined} of 200 invoices paid.`);
  });
});

describe('failures', () => {
  test('while the provider is down the page shows how many stay unpaid, and pay works once it is back', async () => {
    await using ledger = await createDisposable();
    const provider = await startProvider({ DATABASE_URL: ledger.url });
    await using app = await startApp(provider);
    await using window = await visit(app);
    const { page } = window;
    await shows(page, '#pay', 'Pay 3 invoices');
    const { port } = new URL(provider.url);
    await provider[Symbol.asyncDispose]();
    await clickPay(page);
    await shows(page, '#notice', 'The payment provider gave no definite answer.');
    await shows(
      page,
      '#notice',
      '3 invoices stay unpaid. Some may have been charged: the list shows which will be retried',
    );
    await shows(page, '#detail', '3 with an unknown outcome, to be retried.');
    await expect.poll(() => states(page), patience).toEqual(Array(3).fill('Outcome unknown'));
    await using back = await startProvider({ DATABASE_URL: ledger.url, PORT: port });
    expect(back.url).toBe(provider.url);
    await page.getByRole('button', { name: 'Pay 3 invoices' }).click();
    await shows(page, '#headline', 'All 3 invoices are paid.');
    expect(await page.locator('#notice').isVisible()).toBe(false);
  });

  test('an invoice that waits for somebody to look it up at the provider is not offered for payment', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    await using database = await connect(app);
    await database.query('UPDATE invoices SET asked_at = now(), unknown_at = now() WHERE id = 1');
    await using window = await visit(app);
    const { page } = window;
    await shows(
      page,
      '#detail',
      'To pay: kr66.13, £10.25. Look up at the provider: 1 invoice with an unknown outcome.'.replace(
        'kr',
        'kr\u00a0',
      ),
    );
    await expect.poll(() => states(page), patience).toEqual(['Outcome unknown', 'Unpaid', 'Unpaid']);
    await shows(page, '#pay', 'Pay 2 invoices');
    await clickPay(page);
    await shows(page, '#pay', 'Nothing to pay');
    await shows(page, '#headline', '2 of 3 invoices paid.');
    // The run reports the invoice, too. New totals do not hide that.
    await shows(page, '#notice', '1 invoice stays unpaid. Some may have been charged');
    await database.query(
      `INSERT INTO invoices (id, customer_id, amount, currency, paid_at) VALUES (4, 1, 5, 'EUR', now())`,
    );
    await shows(page, '#headline', '3 of 4 invoices paid.');
    expect(await page.locator('#notice').isVisible()).toBe(true);
  });

  test('while the database is unavailable the page says so and keeps its content, then continues', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    await using window = await visit(app);
    const { page } = window;
    await shows(page, '#headline', '0 of 3 invoices paid.');
    await setConnectable(app, false);
    await shows(page, '#connection', 'invoice-app is up, but cannot read the totals: database unavailable.');
    expect(await page.locator('#pay').getAttribute('aria-disabled')).toBe('true');
    await shows(page, '#headline', '0 of 3 invoices paid.');
    await setConnectable(app, true);
    await shows(page, '#connection', 'Live');
    await clickPay(page);
    await shows(page, '#headline', 'All 3 invoices are paid.');
  });

  test('when another process replaces invoice-app the page says so and reconnects', async () => {
    await using provider = await startProvider();
    await using database = await createDisposable();
    const first = await startApp(provider, { DATABASE_URL: database.url });
    await using window = await visit(first);
    const { page } = window;
    await shows(page, '#headline', '0 of 3 invoices paid.');
    const { port } = new URL(first.url);
    await first[Symbol.asyncDispose]();
    await shows(page, '#connection', 'Connection lost, reconnecting.');
    await using second = await startApp(provider, { DATABASE_URL: database.url, PORT: port });
    await shows(page, '#connection', 'Live');
    expect((await post(`${second.url}/invoices/pay`)).status).toBe(200);
    await shows(page, '#headline', 'All 3 invoices are paid.');
  });
});

describe('runs started elsewhere', () => {
  test('a second window shows the run and keeps its scroll position', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider, { SEED_INVOICES: '1000' });
    await using one = await visit(app);
    await using other = await visit(app);
    await shows(other.page, '#headline', '0 of 1,000 invoices paid.');
    await other.page.evaluate('scroller.scrollTop = 20000');
    await expect.poll(() => other.page.locator('#rows td.id').allInnerTexts(), patience).toContain('I460');
    await clickPay(one.page);
    await shows(other.page, '#headline', 'All 1,000 invoices are paid.');
    await expect
      .poll(() => states(other.page).then((all) => new Set(all)), patience)
      .toEqual(new Set(['Paid']));
    expect(await other.page.evaluate('scroller.scrollTop')).toBe(20_000);
  });

  test('the page of one process shows the run of another process on the same database', async () => {
    await using provider = await startProvider({ FAULTS: 'fail=0.3', FAULT_SEED: '3' });
    // The run must take longer than the page's poll interval.
    await using one = await startApp(provider, { SEED_INVOICES: '60000' });
    await using other = await startApp(provider, { DATABASE_URL: one.databaseUrl });
    await using window = await visit(one);
    const { page } = window;
    await shows(page, '#headline', '0 of 60,000 invoices paid.');
    const paying = post(`${other.url}/invoices/pay`);
    await shows(page, '#pay', 'Paying…');
    await paying;
    await shows(page, '#headline', /paid\.$/);
    expect(await page.evaluate('Number(document.getElementById("progress").ariaValueNow)')).toBeGreaterThan(
      30_000,
    );
  });
});

describe('many invoices', () => {
  // Retried, because tasks are timed by the clock: other work on the machine can delay one.
  test(
    'a run over 20,000 is shown as it progresses, and no task blocks the page for 100 ms',
    { retry: 2 },
    async () => {
      await using provider = await startProvider({ FAILURE_RATE: '0.02' });
      await using app = await startApp(provider, { SEED_INVOICES: '20000' });
      await using window = await visit(app);
      const { page } = window;
      await shows(page, '#pay', 'Pay 20,000 invoices');
      await expect.poll(() => states(page), patience).toContain('Unpaid');
      await page.evaluate('void (longTasks.length = 0)');
      await clickPay(page);
      // Polls inside the page, once a frame, because polling from outside would add to its work.
      const seen = await page.evaluate<number>(`new Promise((resolve) => {
      const seen = new Set();
      const poll = () => {
        seen.add(Number(document.getElementById('progress').ariaValueNow));
        // Scrolls the list meanwhile, as a reader would.
        scroller.scrollTop += 40;
        if (pay.textContent.startsWith('Pay ')) resolve(seen.size);
        else requestAnimationFrame(poll);
      };
      requestAnimationFrame(poll);
    })`);
      const longest = await longestTask(window);
      console.log(`20,000 invoices: longest task ${longest} ms, ${seen} steps of progress`);
      expect(longest).toBeLessThan(100);
      expect(seen).toBeGreaterThanOrEqual(4);
      await shows(page, '#detail', /declined/);
    },
  );

  test('of 100,000 the first rows appear within four seconds, and the last row can be reached', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider, { SEED_INVOICES: '100000' });
    await using window = await visit(app);
    const { page } = window;
    const start = Date.now();
    await page.reload();
    await expect.poll(() => page.locator('#rows td.id').allInnerTexts(), patience).toContain('I1');
    const first = Date.now() - start;
    await page.evaluate('scroller.scrollTop = scroller.scrollHeight');
    await expect.poll(() => page.locator('#rows td.id').allInnerTexts(), patience).toContain('I100000');
    const inView = await page.locator('#rows tr', { hasText: 'I100000' }).boundingBox();
    expect(inView!.y + inView!.height).toBeLessThanOrEqual(900);
    expect(await page.locator('#rows tr').count()).toBeLessThan(60);
    console.log(
      `100,000 invoices: first rows after ${first} ms, longest task ${await longestTask(window)} ms`,
    );
    expect(first).toBeLessThan(4_000);
  });

  test('of 400,000, too many for the maximum height of an element, each row can be reached', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider, { SEED_INVOICES: '400000' });
    await using window = await visit(app);
    const { page } = window;
    const names = () => page.locator('#rows td.id').allInnerTexts();
    await page.evaluate('scroller.scrollTop = scroller.scrollHeight');
    await expect.poll(names, patience).toContain('I400000');
    const inView = await page.locator('#rows tr', { hasText: 'I400000' }).boundingBox();
    expect(inView!.y + inView!.height).toBeLessThanOrEqual(900);
    await page.evaluate('scroller.scrollTop = (scroller.scrollHeight - scroller.clientHeight) / 2');
    await expect.poll(names, patience).toContain('I200000');
  });
});

describe('accessibility', () => {
  const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

  test.each<[string, BrowserContextOptions]>([
    ['light', { colorScheme: 'light' }],
    ['dark', { colorScheme: 'dark' }],
    ['phone', { viewport: { width: 360, height: 740 }, hasTouch: true }],
    ['phone, dark', { viewport: { width: 360, height: 740 }, colorScheme: 'dark' }],
  ])('axe finds no violations: %s', async (_name, options) => {
    await using provider = await startProvider({ FAILURE_RATE: '0.5', FAULT_SEED: '2' });
    await using app = await startApp(provider, { SEED_INVOICES: '60' });
    await using window = await visit(app, options);
    const { page } = window;
    await clickPay(page);
    await shows(page, '#detail', /declined/);
    await expect.poll(() => states(page), patience).toContain('Declined');
    expect(await violations(page)).toEqual([]);
    expect(await page.evaluate('document.documentElement.scrollWidth <= innerWidth')).toBe(true);
    // The same with an error shown and the database unavailable.
    await provider.stop();
    await clickPay(page);
    await shows(page, '#notice', 'no definite answer');
    await setConnectable(app, false);
    await shows(page, '#connection', 'cannot read the totals: database unavailable.');
    expect(await violations(page)).toEqual([]);
    await setConnectable(app, true);
  });

  /** Returns the broken rules, each with the elements that break it. */
  async function violations(page: Page): Promise<string[]> {
    // The policy does not apply to code that the debugger runs, and axe creates no scripts from text.
    await page.evaluate(axe);
    return page.evaluate<string[]>(
      `axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }).then(
        ({ violations }) => violations.map(({ id, nodes }) => id + ': ' + nodes.map(({ target, failureSummary }) => target + ' ' + failureSummary).join(' | ')))`,
    );
  }

  test('there are no transitions for users who prefer reduced motion', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    await using window = await visit(app, { reducedMotion: 'reduce' });
    expect(await window.page.evaluate('getComputedStyle(pay).transitionProperty')).toBe('none');
  });

  test('the page says that it needs JavaScript', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    const context = await browser.newContext({ javaScriptEnabled: false });
    const page = await context.newPage();
    await page.goto(app.url);
    expect(await text(page, 'noscript')).toContain('This page needs JavaScript.');
    await context.close();
  });
});

test('the policy blocks inline styles and HTML made from strings', async () => {
  await using provider = await startProvider();
  await using app = await startApp(provider);
  const watched: Watched = await open(browser, app.url);
  await watched.page.evaluate(`
    document.body.append(Object.assign(document.createElement('style'), { textContent: 'body { opacity: 0 }' }));
    try { document.body.innerHTML = '<b>'; } catch {}`);
  await expect.poll(() => watched.complaints.join('\n'), patience).toMatch(/policy: style-src-elem inline/);
  expect(watched.complaints.join('\n')).toMatch(/TrustedHTML|policy: require-trusted-types-for/);
  expect(await watched.page.locator('h1').count()).toBe(1);
  await watched.close();
});

async function createDisposable() {
  const database = await createDatabase();
  return Object.assign(database, { [Symbol.asyncDispose]: () => database.drop() });
}

/** Allows or forbids connections to the database of a service. Forbidding also closes the open ones. */
async function setConnectable({ databaseUrl }: RunningService, connectable: boolean): Promise<void> {
  const name = new URL(databaseUrl).pathname.slice(1);
  const client = new Client({ connectionString: inject('postgresUrl') });
  await client.connect();
  await client.query(`ALTER DATABASE ${name} ALLOW_CONNECTIONS ${connectable}`);
  if (!connectable) {
    await client.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1', [name]);
  }
  await client.end();
}
