/** @import { Totals } from '../overview.ts' */

/** How long a connection may be gone before that is said, in milliseconds: a save in development takes less. */
const patience = 1_500;
/** The wait before a stream that was refused is asked for again, in milliseconds. */
const delay = { first: 1_000, most: 10_000 };

/**
 * Follows what `GET /progress` tells for as long as the page is seen: a browser gives a page few connections.
 * @param {object} told
 * @param {(totals: Totals) => void} told.onProgress
 * @param {() => void} told.onOpen each time it is connected
 * @param {(reason: string) => void} told.onUnavailable its database is away
 * @param {() => void} told.onLost it is not connected any more
 */
export function follow({ onProgress, onOpen, onUnavailable, onLost }) {
  /** @type {EventSource | undefined} */
  let source;
  let wait = delay.first;
  /** @type {number | undefined} */
  let again;
  /** @type {number | undefined} */
  let losing;

  function open() {
    clearTimeout(again);
    source?.close();
    source = new EventSource('/progress');
    source.addEventListener('open', () => {
      clearTimeout(losing);
      losing = undefined;
      wait = delay.first;
      onOpen();
    });
    source.addEventListener('progress', (event) => onProgress(JSON.parse(event.data)));
    source.addEventListener('unavailable', (event) => onUnavailable(JSON.parse(event.data).error));
    source.addEventListener('error', () => {
      losing ??= window.setTimeout(onLost, patience);
      // A broken connection it tries again by itself, and any answer but a stream it takes for the last.
      if (source?.readyState !== EventSource.CLOSED) return;
      again = window.setTimeout(open, wait * (0.5 + Math.random()));
      wait = Math.min(wait * 2, delay.most);
    });
  }

  function close() {
    clearTimeout(again);
    clearTimeout(losing);
    losing = undefined;
    source?.close();
  }

  document.addEventListener('visibilitychange', () => (document.hidden ? close() : open()));
  if (!document.hidden) open();
}
