import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { chromium, type Browser, type BrowserContextOptions, type Page } from 'playwright-core';

const names = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome'];
const applications = [
  '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
  '/Applications/Chromium.app/Contents/MacOS/Chromium',
];

/** Returns the path of Chromium or Chrome on this machine, `CHROMIUM` first; undefined if there is none. */
export function findChromium(): string | undefined {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  const folders = (process.env.PATH ?? '').split(delimiter).filter(Boolean);
  const candidates = names.flatMap((name) => folders.map((folder) => join(folder, name)));
  return [...candidates, ...applications].find((file) => existsSync(file));
}

export function launch(): Promise<Browser> {
  // Chromium's sandbox does not work for root.
  const args = process.getuid?.() === 0 ? ['--no-sandbox'] : [];
  return chromium.launch({ executablePath: findChromium()!, args });
}

/** A page and its complaints: uncaught errors, console errors and warnings, and violations of its policy. */
export interface Watched {
  page: Page;
  complaints: string[];
  close(): Promise<void>;
}

/** Records tasks that block the main thread for 50 ms or more, and violations of the policy. */
const observers = `
  window.longTasks = [];
  new PerformanceObserver((list) => longTasks.push(...list.getEntries().map(({ duration }) => duration)))
    .observe({ type: 'longtask', buffered: true });
  document.addEventListener('securitypolicyviolation', ({ violatedDirective, blockedURI }) =>
    console.error('policy: ' + violatedDirective + ' ' + blockedURI));`;

/** Messages of the browser about failed requests, which some tests cause on purpose. */
const failedRequest = /^Failed to load resource|net::ERR_/;

/** Opens `url` in a new window and waits until the page is connected. */
export async function open(
  browser: Browser,
  url: string,
  options: BrowserContextOptions = {},
): Promise<Watched> {
  const context = await browser.newContext({
    locale: 'en-GB',
    viewport: { width: 1280, height: 900 },
    ...options,
  });
  await context.addInitScript(observers);
  const page = await context.newPage();
  const complaints: string[] = [];
  page.on('pageerror', (error) => complaints.push(error.message));
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) complaints.push(message.text());
  });
  await page.goto(url);
  await page.locator('#connection[data-state=live]').waitFor();
  return { page, complaints, close: () => context.close() };
}

/** Returns the complaints of the page itself, leaving out those about failed requests. */
export function ownComplaints({ complaints }: Watched): string[] {
  return complaints.filter((text) => !failedRequest.test(text));
}

/** Returns the longest task of the main thread so far, in milliseconds; 0 if none took 50 ms. */
export function longestTask({ page }: Watched): Promise<number> {
  return page.evaluate<number>('Math.max(0, ...longTasks)');
}
