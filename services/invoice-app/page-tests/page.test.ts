import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { Client } from 'pg';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import { createDatabase } from '../../../tests/support/database.ts';
import { post, type RunningService } from '../../../tests/support/start-service.ts';
import { startApp, startProvider } from '../../../tests/support/app-and-provider.ts';
import { launch, longestTask, open, ownComplaints, type Watched } from './browser.ts';

/** How long the page may take to show what is expected, in milliseconds. */
const patience = { timeout: 20_000, interval: 50 };

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

/** A window that must have nothing to complain of when it is closed. */
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
async function shows(page: Page, selector: string, what: string | RegExp): Promise<void> {
  await expect.poll(() => text(page, selector), patience).toMatch(what);
}
const clickPay = (page: Page) => page.getByRole('button', { name: /^Pay / }).click();
const states = async (page: Page) => page.locator('#rows td.state').allInnerTexts();

describe('paying', () => {
  test('with a click: progress, sums, states, and a button that has nothing left to do', async () => {
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

  test('with the keyboard alone: to the button, and to the end of the list', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider, { SEED_INVOICES: '500' });
    await using window = await visit(app);
    const { page } = window;
    await shows(page, '#pay', 'Pay 500 invoices');
    await page.keyboard.press('Tab');
    expect(await page.evaluate('document.activeElement.id')).toBe('pay');
    await page.keyboard.press('Enter');
    await shows(page, '#headline', 'All 500 invoices are paid.');
    // The button still has the focus: what is disabled for a moment must not lose it.
    expect(await page.evaluate('document.activeElement.id')).toBe('pay');
    await page.keyboard.press('Tab');
    expect(await page.evaluate('document.activeElement.id')).toBe('reset');
    await page.keyboard.press('Tab');
    await page.keyboard.press('ArrowRight');
    await shows(page, '#empty', 'None of the invoices.');
    await page.keyboard.press('ArrowLeft');
    await page.keyboard.press('Tab');
    expect(await page.evaluate('document.activeElement.id')).toBe('scroller');
    await page.keyboard.press('End');
    await expect.poll(() => page.locator('#rows td.id').allInnerTexts(), patience).toContain('I500');
    expect(await page.locator('#rows tr', { hasText: 'I500' }).getAttribute('aria-rowindex')).toBe('501');
    expect(await page.locator('#table').getAttribute('aria-rowcount')).toBe('501');
  });

  test('once: a second click while a run is under way asks for nothing', async () => {
    await using provider = await startProvider({ FAULTS: 'late=1' });
    await using app = await startApp(provider);
    await using window = await visit(app);
    const { page } = window;
    let asked = 0;
    page.on('request', (request) => {
      if (request.method() === 'POST') asked += 1;
    });
    await shows(page, '#pay', 'Pay 3 invoices');
    await clickPay(page);
    await shows(page, '#pay', 'Paying…');
    await shows(page, '#detail', 'A run is in progress and pays every unpaid invoice.');
    await page.locator('#pay').click({ force: true });
    expect(asked).toBe(1);
  });
});

describe('resetting', () => {
  test('offers a reset where the server allows it, and pays anew after it', async () => {
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

  test('a reset that fails says so, and why', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    await using window = await visit(app);
    const { page } = window;
    await provider.stop();
    await page.getByRole('button', { name: 'Reset' }).click();
    await shows(page, '#notice', /The invoices were not reset\..+provider/s);
    expect(await page.locator('#reset').getAttribute('aria-disabled')).toBe('false');
  });

  test('offers none where the server allows none', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider, { ALLOW_RESET: 'false' });
    await using window = await visit(app);
    expect(await window.page.locator('#reset').isVisible()).toBe(false);
  });
});

describe('narrow windows', () => {
  test.for([360, 700, 721, 775, 830, 860])('at %i px each cell can be seen whole', async (width) => {
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

describe('what is declined', () => {
  test('all of it: each with its time, and no words that only repeat the state, and the next try can be made', async () => {
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

  test('half of it: the list has just those, and the sums both', async () => {
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

describe('what goes wrong', () => {
  test('the provider is down: how many stay unpaid, and after it is back pay works', async () => {
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
    await shows(page, '#notice', '3 invoices stay unpaid. Some may have been charged: they will be retried');
    await shows(page, '#detail', '3 with an unknown outcome: see the list for what follows.');
    await expect.poll(() => states(page), patience).toEqual(Array(3).fill('Outcome unknown'));
    await using back = await startProvider({ DATABASE_URL: ledger.url, PORT: port });
    expect(back.url).toBe(provider.url);
    await page.getByRole('button', { name: 'Pay 3 invoices' }).click();
    await shows(page, '#headline', 'All 3 invoices are paid.');
    expect(await page.locator('#notice').isVisible()).toBe(false);
  });

  test('the database is away: the page says so, keeps what it knew, and goes on when it is back', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    await using window = await visit(app);
    const { page } = window;
    await shows(page, '#headline', '0 of 3 invoices paid.');
    await setConnectable(app, false);
    await shows(page, '#connection', 'invoice-app is up, but its database is down');
    expect(await page.locator('#pay').getAttribute('aria-disabled')).toBe('true');
    await shows(page, '#headline', '0 of 3 invoices paid.');
    await setConnectable(app, true);
    await shows(page, '#connection', 'Live');
    await clickPay(page);
    await shows(page, '#headline', 'All 3 invoices are paid.');
  });

  test('invoice-app ends, and another comes: the page says so, and finds it by itself', async () => {
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

describe('what others do', () => {
  test('a second window shows it, a list scrolled to a place stays there', async () => {
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

  test('two processes on one database: the page of one shows the run of the other', async () => {
    await using provider = await startProvider({ FAULTS: 'fail=0.3', FAULT_SEED: '3' });
    await using one = await startApp(provider, { SEED_INVOICES: '20000' });
    await using other = await startApp(provider, { DATABASE_URL: one.databaseUrl });
    await using window = await visit(one);
    const { page } = window;
    await shows(page, '#headline', '0 of 20,000 invoices paid.');
    const paying = post(`${other.url}/invoices/pay`);
    await shows(page, '#pay', 'Paying…');
    await paying;
    await shows(page, '#headline', /paid\.$/);
    expect(await page.evaluate('Number(document.getElementById("progress").ariaValueNow)')).toBeGreaterThan(
      10_000,
    );
  });
});

describe('many invoices', () => {
  // A task's time is that of the clock: on a machine that is busy with more, one may be kept waiting.
  test(
    'a run over 20,000: it is shown as it goes, and no task keeps the page for 100 ms',
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
      // The page is looked at from within, once a frame, as looking from outside is work for it too.
      const seen = await page.evaluate<number>(`new Promise((resolve) => {
      const seen = new Set();
      const look = () => {
        seen.add(Number(document.getElementById('progress').ariaValueNow));
        // The list is scrolled meanwhile, as a reader would.
        scroller.scrollTop += 40;
        if (pay.textContent.startsWith('Pay ')) resolve(seen.size);
        else requestAnimationFrame(look);
      };
      requestAnimationFrame(look);
    })`);
      const longest = await longestTask(window);
      console.log(`20,000 invoices: longest task ${longest} ms, ${seen} steps of progress`);
      expect(longest).toBeLessThan(100);
      expect(seen).toBeGreaterThanOrEqual(4);
      await shows(page, '#detail', /declined/);
    },
  );

  test('100,000: the first rows are there at once, and so is the last', async () => {
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

  test('400,000, which is more than an element is high: each is reached, the last one too', async () => {
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

describe('everybody can use it', () => {
  const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

  test.each<[string, BrowserContextOptions]>([
    ['light', { colorScheme: 'light' }],
    ['dark', { colorScheme: 'dark' }],
    ['phone', { viewport: { width: 360, height: 740 }, hasTouch: true }],
    ['phone, dark', { viewport: { width: 360, height: 740 }, colorScheme: 'dark' }],
  ])('axe finds nothing: %s', async (_name, options) => {
    await using provider = await startProvider({ FAILURE_RATE: '0.5', FAULT_SEED: '2' });
    await using app = await startApp(provider, { SEED_INVOICES: '60' });
    await using window = await visit(app, options);
    const { page } = window;
    await clickPay(page);
    await shows(page, '#detail', /declined/);
    await expect.poll(() => states(page), patience).toContain('Declined');
    expect(await violations(page)).toEqual([]);
    expect(await page.evaluate('document.documentElement.scrollWidth <= innerWidth')).toBe(true);
    // With an error, and without a database.
    await provider.stop();
    await clickPay(page);
    await shows(page, '#notice', 'no definite answer');
    await setConnectable(app, false);
    await shows(page, '#connection', 'its database is away');
    expect(await violations(page)).toEqual([]);
    await setConnectable(app, true);
  });

  /** The rules that are broken, each with where. */
  async function violations(page: Page): Promise<string[]> {
    // As the debugger runs it the policy says nothing of it; it makes no script of text.
    await page.evaluate(axe);
    return page.evaluate<string[]>(
      `axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }).then(
        ({ violations }) => violations.map(({ id, nodes }) => id + ': ' + nodes.map(({ target, failureSummary }) => target + ' ' + failureSummary).join(' | ')))`,
    );
  }

  test('who wants little motion gets none', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    await using window = await visit(app, { reducedMotion: 'reduce' });
    expect(await window.page.evaluate('getComputedStyle(pay).transitionProperty')).toBe('none');
  });

  test('without JavaScript it says where the invoices are', async () => {
    await using provider = await startProvider();
    await using app = await startApp(provider);
    const context = await browser.newContext({ javaScriptEnabled: false });
    const page = await context.newPage();
    await page.goto(app.url);
    expect(await text(page, 'noscript')).toContain('This page needs JavaScript.');
    await context.close();
  });
});

test('the policy keeps out what is not the page’s own', async () => {
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

/** Lets the database of a service take connections or none, and ends those that there are. */
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
