import { HttpError } from '@payloop/kit/http-error.ts';
import { toMinorUnits } from '@payloop/kit/money.ts';
import { z } from 'zod';

/** What a client asks to be charged. */
export interface Payment {
  /** The client's own id, not unique here: without an idempotency key every request is a payment of its own. */
  id: string;
  /** In minor units, rounded half up where the value had more decimals than its currency has. */
  amount: bigint;
  currency: string;
}

/** The types of the fields, by lower-cased name; which of them are missing is said one by one. */
const fields = z.object({
  id: z.string().default(''),
  // The original reads a float32: what it cannot hold is a wrong value, what it rounds to zero is missing.
  value: z
    .number()
    .refine((value) => Number.isFinite(Math.fround(value)))
    .default(0),
  currency: z.string().default(''),
});

/**
 * Reads the body of `POST /payments/pay` as the original service does: keys in any case, `null` as if it were
 * not there, further fields ignored.
 * @throws {HttpError} 400 with the first error that applies
 */
export function parsePayment(body: Buffer | undefined): Payment {
  const result = fields.safeParse(lowerCaseKeys(parseJson(body)));
  if (!result.success) throw new HttpError(400, 'failed to process payment request parameters');
  const { id, value, currency } = result.data;
  if (id === '') throw new HttpError(400, 'could not retrieve payment id');
  if (Math.fround(value) === 0) throw new HttpError(400, 'could not retrieve payment value');
  if (currency === '') throw new HttpError(400, 'could not retrieve payment currency');
  return { id, amount: toMinorUnits(value, currency), currency };
}

/** The parsed body; undefined, which no field's type allows, where it is not JSON. */
function parseJson(body: Buffer | undefined): unknown {
  try {
    return JSON.parse(body?.toString('utf8') ?? '');
  } catch {
    return undefined;
  }
}

function lowerCaseKeys(body: unknown): unknown {
  if (body === null) return {};
  if (typeof body !== 'object' || Array.isArray(body)) return undefined;
  return Object.fromEntries(
    Object.entries(body)
      .filter(([, value]) => value !== null)
      .map(([key, value]) => [key.toLowerCase(), value]),
  );
}
