import type { Handler } from 'express';
import { HttpError } from './http-error.ts';

/** When to ask again while there are too many, in seconds. */
const retryAfter = 5;

/**
 * Lets in at most so many requests at a time, until each is answered or its client has gone; the others get 503.
 * @param most how many
 * @param what they are, in the plural, for the error
 */
export function limitRequests(most: number, what: string): Handler {
  let underWay = 0;
  return (_request, response, next) => {
    if (underWay >= most) throw new HttpError(503, `too many ${what} at once, try again later`, retryAfter);
    underWay += 1;
    response.on('close', () => (underWay -= 1));
    next();
  };
}
