import { formatAmount, formatCount, formatTime, stateNames } from './format.js';
/** @import { Filter, Row } from '../overview.ts' */

/** The number of rows that one request fetches. */
const pageSize = 100;
/** The number of rows drawn above the visible ones, and below them, so that a short scroll shows them at once. */
const overscan = 8;
/** The maximum height of the list, in pixels, close to the limit of browsers. A longer list scrolls faster. */
const maxListHeight = 12_000_000;
/** The maximum number of pages in the cache. */
const maxCachedPages = 30;
/** The wait before a failed fetch is retried, in milliseconds. Long, because every other viewer retries too. */
const retryDelay = 5_000;
/** The minimum time between two refreshes, in milliseconds. */
const minRefreshInterval = 500;

/** @param {string} id */
const element = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** A table of any number of rows that fetches and draws only the visible ones. */
export class Rows {
  #scroller = element('scroller');
  #space = element('space');
  #table = element('table');
  #body = element('rows');
  #empty = element('empty');
  /** @type {Filter} */
  #filter = 'all';
  #total = 0;
  /**
   * By page number; `stale` pages are shown until they are fetched again.
   * @type {Map<number, { rows: Row[], stale: boolean }>}
   */
  #pages = new Map();
  /** @type {Map<number, AbortController>} */
  #fetching = new Map();
  #rowHeight = 44;
  #headHeight = 44;
  #drawing = false;
  #refreshedAt = 0;
  /** @type {number | undefined} */
  #refreshing;

  constructor() {
    this.#scroller.addEventListener('scroll', () => this.#draw(), { passive: true });
    new ResizeObserver(() => this.#measure()).observe(this.#scroller);
    this.#measure();
  }

  /** Shows another list, from its start. @param {Filter} filter @param {number} total */
  show(filter, total) {
    this.#filter = filter;
    this.#forget();
    this.#setTotal(total);
    this.#scroller.scrollTop = 0;
    this.#draw();
  }

  /**
   * Sets the length, and fetches the visible rows again unless all of them are paid, which is final.
   * @param {number} total how many rows there are now
   * @param {boolean} isReset whether the data was reset, so that even paid rows may have changed
   */
  update(total, isReset) {
    const settled = this.#filter === 'all' && !isReset && total === this.#total && this.#isSettled();
    this.#setTotal(total);
    if (!settled) this.#refreshSoon();
  }

  /** Fetches the visible rows again. */
  refresh() {
    clearTimeout(this.#refreshing);
    this.#refreshing = undefined;
    this.#refreshedAt = performance.now();
    for (const page of this.#pages.values()) page.stale = true;
    this.#draw();
  }

  #refreshSoon() {
    const wait = Math.max(0, this.#refreshedAt + minRefreshInterval - performance.now());
    this.#refreshing ??= window.setTimeout(() => this.refresh(), wait);
  }

  #isSettled() {
    const [from, to] = this.#seen();
    for (let at = from; at < to; at += 1) if (this.#row(at)?.state !== 'paid') return false;
    return true;
  }

  #forget() {
    for (const fetching of this.#fetching.values()) fetching.abort();
    this.#fetching.clear();
    this.#pages.clear();
  }

  #measure() {
    const style = getComputedStyle(this.#scroller);
    this.#rowHeight = parseFloat(style.getPropertyValue('--row')) || 44;
    this.#headHeight = parseFloat(style.getPropertyValue('--head')) || 0;
    this.#setTotal(this.#total);
    this.#draw();
  }

  /** @param {number} total */
  #setTotal(total) {
    this.#total = total;
    this.#table.setAttribute('aria-rowcount', `${total + 1}`);
    this.#space.style.height = `${this.#height()}px`;
    this.#empty.hidden = total > 0;
    this.#empty.textContent =
      this.#filter === 'all' ? 'There are no invoices.' : 'No invoice matches this filter.';
  }

  #height() {
    return Math.min(this.#total * this.#rowHeight, maxListHeight) + this.#headHeight;
  }

  /** Returns how many pixels of the list one pixel of the scroll bar stands for; 1 for lists of usual length. */
  #speed() {
    const viewport = this.#scroller.clientHeight - this.#headHeight;
    const scrollable = this.#height() - this.#headHeight - viewport;
    return scrollable > 0 ? (this.#total * this.#rowHeight - viewport) / scrollable : 1;
  }

  /** Returns the first visible row, and the one after the last. @returns {[number, number]} */
  #seen() {
    const top = this.#scroller.scrollTop * this.#speed();
    const first = Math.floor(top / this.#rowHeight);
    const count = Math.ceil(this.#scroller.clientHeight / this.#rowHeight) + 1;
    return [Math.max(0, first), Math.min(this.#total, first + count)];
  }

  #draw() {
    if (this.#drawing) return;
    this.#drawing = true;
    requestAnimationFrame(() => {
      this.#drawing = false;
      this.#drawNow();
    });
  }

  #drawNow() {
    const [seenFrom, seenTo] = this.#seen();
    const from = Math.max(0, seenFrom - overscan);
    const to = Math.min(this.#total, seenTo + overscan);
    const { scrollTop } = this.#scroller;
    const speed = this.#speed();
    // Places the table so that the row at the top is cut off as far as it is scrolled.
    this.#table.style.top = `${scrollTop - (scrollTop * speed - from * this.#rowHeight)}px`;
    while (this.#body.childElementCount > Math.max(0, to - from)) this.#body.lastElementChild?.remove();
    while (this.#body.childElementCount < to - from) this.#body.append(createRow());
    let at = from;
    for (const line of this.#body.children) {
      fill(/** @type {HTMLTableRowElement} */ (line), at, this.#row(at));
      at += 1;
    }
    this.#fetchPages(from, to);
  }

  /** @param {number} at */
  #row(at) {
    return this.#pages.get(Math.floor(at / pageSize))?.rows[at % pageSize];
  }

  /** @param {number} from @param {number} to */
  #fetchPages(from, to) {
    const [first, last] = [Math.floor(from / pageSize), Math.floor(Math.max(from, to - 1) / pageSize)];
    for (const [page, fetching] of this.#fetching) {
      if (page >= first && page <= last) continue;
      // Scrolled past.
      fetching.abort();
      this.#fetching.delete(page);
    }
    for (let page = first; page <= last && page * pageSize < this.#total; page += 1) {
      if (!this.#fetching.has(page) && (this.#pages.get(page)?.stale ?? true)) void this.#fetchPage(page);
    }
    for (const page of this.#pages.keys()) {
      if (this.#pages.size <= maxCachedPages) break;
      if (page < first || page > last) this.#pages.delete(page);
    }
  }

  /** @param {number} page */
  async #fetchPage(page) {
    const fetching = new AbortController();
    this.#fetching.set(page, fetching);
    const { signal } = fetching;
    const query = `show=${this.#filter}&from=${page * pageSize}&limit=${pageSize}`;
    try {
      const response = await fetch(`/rows?${query}`, { signal });
      if (!response.ok) throw new Error(`${response.status}`);
      /** @type {{ total: number, rows: Row[] }} */
      const { total, rows } = await response.json();
      this.#pages.delete(page);
      this.#pages.set(page, { rows, stale: false });
      this.#fetching.delete(page);
      if (total !== this.#total) this.#setTotal(total);
      this.#draw();
    } catch {
      // Cached rows stay visible, and the stream reports why there is nothing new.
      if (this.#fetching.get(page) === fetching) this.#fetching.delete(page);
      if (!signal.aborted) this.#refreshing ??= window.setTimeout(() => this.refresh(), retryDelay);
    }
  }
}

function createRow() {
  const line = document.createElement('tr');
  line.setAttribute('role', 'row');
  for (const name of ['id', 'amount', 'currency', 'state', 'why']) {
    const cell = document.createElement('td');
    cell.setAttribute('role', 'cell');
    cell.className = name;
    cell.append('');
    line.append(cell);
  }
  return line;
}

/** @param {HTMLTableRowElement} line @param {number} at @param {Row | undefined} row */
function fill(line, at, row) {
  // The header has index 1.
  setAttribute(line, 'aria-rowindex', `${at + 2}`);
  setAttribute(line, 'data-state', row?.state ?? 'loading');
  setAttribute(line, 'data-parity', at % 2 ? 'odd' : 'even');
  const texts = row
    ? [row.id, formatAmount(row.amount, row.currency), row.currency, stateNames[row.state], explain(row)]
    : [`${formatCount(at + 1)}.`, '…', '', '', ''];
  for (const [index, text] of texts.entries()) {
    const node = line.cells[index]?.firstChild;
    if (node && node.nodeValue !== text) node.nodeValue = text;
  }
}

/** @param {Row} row */
function explain({ state, at, reason }) {
  const when = at === null ? '' : formatTime(new Date(at));
  // The provider's usual reason says no more than the state does.
  if (state === 'declined' && reason === 'payment declined') return when;
  if (state === 'unknown') return 'will be retried';
  if (state === 'declined' || state === 'refused' || state === 'unsettled')
    return reason ? `${when} · ${reason}` : `${when} · no reason given`;
  return when;
}

/** @param {Element} target @param {string} name @param {string} value */
function setAttribute(target, name, value) {
  if (target.getAttribute(name) !== value) target.setAttribute(name, value);
}
