/** @import { Totals } from '../overview.ts' */

/**
 * How long the connection may be lost before the page reports it, in milliseconds. Longer than the loss when a
 * developer saves code and a new process takes over.
 */
const patience = 1_500;
/**
 * The mean wait before a rejected stream is opened again, in milliseconds. It doubles from `first` up to `most`. Each
 * wait is random, from half to one and a half times the mean.
 */
const delay = { first: 1_000, most: 10_000 };

/**
 * Follows the events of `GET /progress` while the page is visible, as a browser opens few connections per site.
 * @param {object} handlers
 * @param {(totals: Totals) => void} handlers.onProgress
 * @param {() => void} handlers.onOpen each time it is connected
 * @param {(reason: string) => void} handlers.onUnavailable the totals cannot be read
 * @param {() => void} handlers.onLost the connection is lost
 */
export function follow({ onProgress, onOpen, onUnavailable, onLost }) {
  /** @type {EventSource | undefined} */
  let source;
  let wait = delay.first;
  /** @type {number | undefined} */
  let retryTimer;
  /** @type {number | undefined} */
  let lossTimer;

  function open() {
    clearTimeout(retryTimer);
    source?.close();
    source = new EventSource('/progress');
    source.addEventListener('open', () => {
      clearTimeout(lossTimer);
      lossTimer = undefined;
      wait = delay.first;
      onOpen();
    });
    source.addEventListener('progress', (event) => onProgress(JSON.parse(event.data)));
    source.addEventListener('unavailable', (event) => onUnavailable(JSON.parse(event.data).error));
    source.addEventListener('error', () => {
      lossTimer ??= window.setTimeout(onLost, patience);
      // EventSource reconnects by itself after a broken connection, but gives up after any answer but a stream.
      if (source?.readyState !== EventSource.CLOSED) return;
      retryTimer = window.setTimeout(open, wait * (0.5 + Math.random()));
      wait = Math.min(wait * 2, delay.most);
    });
  }

  function close() {
    clearTimeout(retryTimer);
    clearTimeout(lossTimer);
    lossTimer = undefined;
    source?.close();
  }

  document.addEventListener('visibilitychange', () => (document.hidden ? close() : open()));
  if (!document.hidden) open();
}
