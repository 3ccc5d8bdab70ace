import { formatAmount, formatCount, formatInvoices, formatTime, subtract } from './format.js';
import { Rows } from './rows.js';
import { follow } from './stream.js';
/** @import { CurrencySums, Filter, State, Totals } from '../overview.ts' */

/** The least time between two announcements to a screen reader during a run, in milliseconds. */
const announceEvery = 8_000;

/** @type {State[]} */
const states = ['paid', 'declined', 'refused', 'paying', 'unknown', 'unsettled', 'unpaid'];

/** @param {string} id */
const element = (id) => /** @type {HTMLElement} */ (document.getElementById(id));
const button = element('pay');
const resetButton = element('reset');
const progress = element('progress');
const rows = new Rows();

/** The last totals received. @type {Totals | undefined} */
let totals;
/** When and why the page lost its live data. @type {{ since: Date, why: string } | undefined} */
let away;
/** Whether this page waits for the answer to its own request to pay. */
let paying = false;
/** Whether this page waits for the answer to its own request to reset. */
let resetting = false;
/** @type {Filter} */
let filter = 'all';
let announcedAt = -Infinity;
let announced = '';

/** @param {State} state */
function count(state) {
  return totals?.sums.reduce((sum, sums) => sum + sums[state].count, 0) ?? 0;
}

function countAll() {
  return states.reduce((sum, state) => sum + count(state), 0);
}

/** Counts the invoices that a run would pay, or is paying. */
function countPayable() {
  return countAll() - count('paid') - count('refused') - count('unsettled');
}

/** @param {Filter} which */
function countOf(which) {
  if (which === 'all') return countAll();
  return which === 'unpaid' ? countAll() - count('paid') : count(which);
}

/** @param {Totals} received */
function update(received) {
  const [paidBefore, allBefore] = [count('paid'), countAll()];
  const isFirst = totals === undefined;
  totals = received;
  away = undefined;
  // An error stays visible until every invoice is paid or refused.
  if (!received.running && countAll() === count('paid') + count('refused')) hideNotice();
  draw();
  const isReset = count('paid') < paidBefore || countAll() !== allBefore;
  if (isFirst) rows.show(filter, countOf(filter));
  else rows.update(countOf(filter), isReset);
}

function draw() {
  drawConnection();
  if (!totals) return;
  drawStatus(totals);
  drawSums(totals.sums);
  for (const label of document.querySelectorAll('#filters label')) {
    const input = /** @type {HTMLInputElement} */ (label.querySelector('input'));
    setText(label.querySelector('b'), formatCount(countOf(/** @type {Filter} */ (input.value))));
  }
}

function drawConnection() {
  const connection = element('connection');
  connection.dataset.state = away ? 'away' : totals ? 'live' : 'connecting';
  document.body.dataset.away = `${away !== undefined}`;
  if (away) setText(connection, `${away.why} Last known at ${formatTime(away.since)}.`);
  else setText(connection, totals ? 'Live' : 'Connecting…');
}

/** @param {Totals} now */
function drawStatus({ running, sums }) {
  const [all, paid, declined, unknown] = [countAll(), count('paid'), count('declined'), count('unknown')];
  const [refused, unsettled, unpaid] = [count('refused'), count('unsettled'), countPayable()];
  const busy = running || paying;
  // Recovery retries unknown outcomes by itself. No payment run was started.
  const recovers = running && !paying && unknown > 0;
  const headline = describe(busy, all, paid);
  const detail = [
    unpaid > 0 && `To pay: ${listSums(sums)}.`,
    declined > 0 && `${formatCount(declined)} declined.`,
    refused > 0 && `${formatCount(refused)} refused: change their value or currency, then pay again.`,
    unknown > 0 && `${formatCount(unknown)} with an unknown outcome, to be retried.`,
    recovers && 'invoice-app is retrying them.',
    unsettled > 0 && `Look up at the provider: ${formatInvoices(unsettled)} with an unknown outcome.`,
    busy && !recovers && 'A run is in progress and pays every unpaid invoice.',
    !busy && declined > 0 && unknown + unsettled === 0 && 'Paying again makes a new attempt for each.',
  ]
    .filter(Boolean)
    .join(' ');
  setText(element('headline'), headline);
  setText(element('detail'), detail || '\u00a0');
  const idle = unpaid > 0 ? `Pay ${formatInvoices(unpaid)}` : 'Nothing to pay';
  setText(button, recovers ? 'Retrying…' : busy ? 'Paying…' : idle);
  button.setAttribute('aria-disabled', `${busy || unpaid === 0 || away !== undefined}`);
  setText(resetButton, resetting ? 'Resetting…' : 'Reset');
  resetButton.setAttribute('aria-disabled', `${busy || resetting || away !== undefined}`);
  progress.ariaValueMax = `${Math.max(1, all)}`;
  progress.ariaValueNow = `${paid}`;
  setShares(progress, all, paid, declined + refused);
  announce(busy, `${headline} ${detail}`);
}

/** @param {boolean} busy @param {number} all @param {number} paid */
function describe(busy, all, paid) {
  if (all === 0) return 'There are no invoices.';
  if (!busy && paid === all)
    return all === 1 ? 'The invoice is paid.' : `All ${formatInvoices(all)} are paid.`;
  return `${formatCount(paid)} of ${formatInvoices(all)} paid${busy ? '…' : '.'}`;
}

/**
 * Lists the sums that a run would pay, by currency: every unpaid invoice that is neither refused nor unsettled.
 * @param {CurrencySums[]} sums
 */
function listSums(sums) {
  const unpaid = sums.filter(({ open, refused, unsettled }) => open.count > refused.count + unsettled.count);
  return unpaid
    .map(({ currency, open, refused, unsettled }) =>
      formatAmount(subtract(subtract(open.amount, refused.amount), unsettled.amount), currency),
    )
    .join(', ');
}

/**
 * Sets which shares of a bar are paid, and declined or refused.
 * @param {HTMLElement} bar @param {number} all @param {number} paid @param {number} declined
 */
function setShares(bar, all, paid, declined) {
  bar.style.setProperty('--paid-share', `${all > 0 ? paid / all : 0}`);
  bar.style.setProperty('--declined-share', `${all > 0 ? declined / all : 0}`);
}

/**
 * Announces a run to screen readers: its start and end at once, its progress at intervals.
 * @param {boolean} busy @param {string} text
 */
function announce(busy, text) {
  const now = performance.now();
  if (text === announced || (busy && now - announcedAt < announceEvery)) return;
  // A screen reader reads the first text with the page.
  if (announced !== '') setText(element('announcement'), text);
  announced = text;
  announcedAt = busy ? now : -Infinity;
}

/** @param {CurrencySums[]} sums */
function drawSums(sums) {
  const list = element('sums');
  while (list.childElementCount > sums.length) list.lastElementChild?.remove();
  for (const [index, each] of sums.entries()) {
    const item = list.children[index] ?? list.appendChild(createSum());
    fillSum(/** @type {HTMLElement} */ (item), each);
  }
}

function createSum() {
  const item = document.createElement('li');
  for (const [tag, name] of /** @type {const} */ ([
    ['h3', 'currency'],
    ['p', 'paid'],
    ['p', 'open'],
    ['div', 'bar'],
  ])) {
    const part = document.createElement(tag);
    part.className = name;
    item.append(part);
  }
  for (const name of ['paid', 'open']) {
    const line = item.querySelector(`.${name}`);
    // The space separates the two for screen readers.
    line?.append(document.createElement('strong'), ' ', document.createElement('span'));
  }
  for (const name of ['of-paid', 'of-declined']) {
    const part = document.createElement('i');
    part.className = name;
    item.querySelector('.bar')?.append(part);
  }
  return item;
}

/** @param {HTMLElement} item @param {CurrencySums} sums */
function fillSum(item, sums) {
  const { currency, paid, open, declined, refused } = sums;
  const all = paid.count + open.count;
  setText(item.querySelector('.currency'), currency);
  setText(item.querySelector('.paid strong'), formatAmount(paid.amount, currency));
  setText(item.querySelector('.paid span'), `${formatCount(paid.count)} paid`);
  setText(item.querySelector('.open strong'), formatAmount(open.amount, currency));
  setText(item.querySelector('.open span'), `${formatCount(open.count)} unpaid`);
  setShares(item, all, paid.count, declined.count + refused.count);
}

async function pay() {
  if (button.getAttribute('aria-disabled') === 'true') return;
  hideNotice();
  paying = true;
  draw();
  try {
    const response = await fetch('/invoices/pay', { method: 'POST' });
    if (!response.ok) showNotice(...explain(response.status, await response.json().catch(() => ({}))));
  } catch {
    showNotice(
      'The connection broke off before there was an answer.',
      'The list shows the invoices paid so far. You can pay the rest again: no invoice is charged twice.',
    );
  }
  paying = false;
  draw();
}

async function reset() {
  if (resetButton.getAttribute('aria-disabled') === 'true') return;
  hideNotice();
  resetting = true;
  draw();
  try {
    const response = await fetch('/reset', { method: 'POST' });
    if (!response.ok) {
      const { error } = await response.json().catch(() => ({}));
      showNotice('The invoices were not reset.', `${error ?? `invoice-app answered ${response.status}`}.`);
    }
  } catch {
    showNotice(
      'The connection broke off before there was an answer.',
      'The list shows whether they were reset.',
    );
  }
  resetting = false;
  draw();
}

/**
 * Explains why a run failed or left invoices unpaid, and the consequence.
 * @param {number} status
 * @param {{ error?: string, paid?: number, declined?: number, refused?: number, unknown?: number, left?: number }} answer
 * @returns {[string, string]}
 */
function explain(status, { error, paid = 0, declined = 0, refused = 0, unknown, left = 0 }) {
  // An error without counts, such as a 502 of a proxy in between.
  if (unknown === undefined) {
    return [`invoice-app could not pay: ${error ?? `it answered ${status}`}.`, 'Try again when it is back.'];
  }
  const stay = (/** @type {number} */ number) =>
    `${formatInvoices(number)} ${number === 1 ? 'stays' : 'stay'} unpaid`;
  const consequence = [
    unknown > 0 &&
      `${stay(unknown)}. Some may have been charged: the list shows which will be retried. None will be charged twice.`,
    left > 0 && `${stay(left)}: this run did not get to them. Pay again.`,
    refused > 0 &&
      `${stay(refused)}: the provider refused them. Change their value or currency, then pay again.`,
    `This run paid ${formatCount(paid)}; ${formatCount(declined)} were declined.`,
  ];
  const cause = error ?? 'the payment provider gave no definite answer';
  return [`${cause.charAt(0).toUpperCase()}${cause.slice(1)}.`, consequence.filter(Boolean).join(' ')];
}

/** @param {string} title @param {string} text */
function showNotice(title, text) {
  const notice = element('notice');
  const [strong, paragraph, when] = ['strong', 'p', 'time'].map((tag) => document.createElement(tag));
  if (!strong || !paragraph || !when) return;
  strong.textContent = title;
  paragraph.textContent = text;
  when.textContent = formatTime(new Date());
  notice.replaceChildren(strong, ' ', when, paragraph);
  notice.hidden = false;
}

function hideNotice() {
  element('notice').hidden = true;
}

/** @param {string} why */
function lose(why) {
  away = { since: away?.since ?? new Date(), why };
  draw();
}

/** Changes the document only if the text is new. @param {Element | null} target @param {string} text */
function setText(target, text) {
  if (target && target.textContent !== text) target.textContent = text;
}

button.addEventListener('click', () => void pay());
resetButton.addEventListener('click', () => void reset());
element('filters').addEventListener('change', (event) => {
  filter = /** @type {Filter} */ (/** @type {HTMLInputElement} */ (event.target).value);
  rows.show(filter, countOf(filter));
});
follow({
  onProgress: update,
  // The first event, not the connection, shows whether the data is live.
  onOpen() {
    if (totals) rows.refresh();
  },
  onUnavailable: (reason) => lose(`invoice-app is up, but cannot read the totals: ${reason}.`),
  onLost: () => lose('Connection lost, reconnecting.'),
});
