import { json } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { listen } from './start-service.ts';

/** Stands in for the original Go provider: it rejects arrays, ignores idempotency keys, and answers slowly. */
export interface Original extends AsyncDisposable {
  url: string;
  /** The number of charges per payment id. */
  charges: Map<string, number>;
  /** Returns the number of requests in flight. */
  underWay(): number;
  /** Returns the fault of a payment, or undefined to charge it and answer 200. */
  fault: ((id: string) => 'decline' | 'break off' | 'reject' | undefined) | undefined;
  /** The delay before each answer, in milliseconds. */
  delay: number;
  /** Whether it honours idempotency keys and advertises that, unlike the original. */
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
