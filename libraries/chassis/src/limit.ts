import type { Handler } from 'express';
import { HttpError } from './http-error.ts';

/** When clients should retry a rejected request, in seconds. */
const retryAfter = 5;

/**
 * Limits the requests in flight and rejects the rest with 503. A request counts until its response is sent or its
 * client disconnects.
 * @param max the maximum number of requests in flight
 * @param plural the name of the requests, for the error message
 */
export function limitRequests(max: number, plural: string): Handler {
  let inFlight = 0;
  return (_request, response, next) => {
    if (inFlight >= max) throw new HttpError(503, `too many ${plural} at once, try again later`, retryAfter);
    inFlight += 1;
    response.on('close', () => (inFlight -= 1));
    next();
  };
}
