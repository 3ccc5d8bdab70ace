import { json } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { listen } from './start-service.ts';

/** A provider as the original one in Go is: it refuses arrays, ignores keys, and takes its time for each answer. */
export interface Original extends AsyncDisposable {
  url: string;
  /** How often each payment was charged, by its id. */
  charges: Map<string, number>;
  /** The requests under way. */
  underWay(): number;
  /** What becomes of a payment; undefined: charged, and answered so. */
  fault: ((id: string) => 'decline' | 'break off' | 'reject' | undefined) | undefined;
  /** How long an answer takes, in milliseconds. */
  delay: number;
  /** Whether it honours keys, unlike the original, and says so. */
  keys: boolean;
}

export async function startOriginal(delay = 250): Promise<Original> {
  const charges = new Map<string, number>();
  const answered = new Set<unknown>();
  let underWay = 0;
  const server = await listen(async (request, response) => {
    const body = await json(request).catch(() => undefined);
    const answer = (status: number, content: unknown) =>
      response
        .writeHead(status, {
          'Content-Type': 'application/json',
          ...(original.keys && { 'Accept-Idempotency-Key': 'true' }),
        })
        .end(JSON.stringify(content));
    const { id, value, currency } = (body ?? {}) as Record<string, unknown>;
    if (typeof id !== 'string' || Array.isArray(body)) {
      answer(400, { error: 'failed to process payment request parameters' });
      return;
    }
    underWay += 1;
    const fault = original.fault?.(id);
    const isWrong = !value || !currency;
    const key = request.headers['idempotency-key'];
    const isRepeat = original.keys && answered.has(key);
    answered.add(key);
    if (!isWrong && !isRepeat && fault !== 'decline' && fault !== 'reject')
      charges.set(id, (charges.get(id) ?? 0) + 1);
    await sleep(original.delay);
    underWay -= 1;
    if (isWrong) answer(400, { error: `could not retrieve payment ${value ? 'currency' : 'value'}` });
    else if (fault === 'break off') request.socket.destroy();
    else if (fault === 'decline') answer(402, { error: 'payment declined' });
    else if (fault === 'reject') answer(429, { error: 'too many' });
    else answer(200, { id });
  });
  const original: Original = Object.assign(server, {
    charges,
    underWay: () => underWay,
    fault: undefined,
    delay,
    keys: false,
  });
  return original;
}
