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
  /** Makes a repeated request the same payment. */
  key?: string | undefined;
}

/** The most payments that one request may hold. */
export const mostPayments = 1_000;

const wrongParameters = 'failed to process payment request parameters';
const keyRule = 'an idempotency key must have 1 to 255 characters';

/** Text that Postgres can store: any but U+0000. */
const text = z.string().refine((value) => !value.includes('\0'));

/** The types of the fields, by lower-cased name; which of them are missing is said one by one. */
const fields = z.object({
  id: text.default(''),
  // The original reads a float32: what it cannot hold is a wrong value, what it rounds to zero is missing.
  value: z
    .number()
    .refine((value) => Number.isFinite(Math.fround(value)))
    .default(0),
  currency: text.default(''),
});

/**
 * Reads a body as JSON, whatever its type says.
 * @throws {HttpError} 400 where it is none
 */
export function parseBody(body: Buffer | undefined): unknown {
  try {
    return JSON.parse(body?.toString('utf8') ?? '');
  } catch {
    throw new HttpError(400, wrongParameters);
  }
}

/**
 * Reads one payment as the original service does: keys in any case, `null` as if it were not there, further
 * fields ignored.
 * @throws {HttpError} 400 with the first error that applies
 */
export function parsePayment(body: unknown): Payment {
  return readPayment(lowerCaseKeys(body));
}

function readPayment(given: Record<string, unknown> | undefined): Payment {
  const result = fields.safeParse(given);
  if (!result.success) throw new HttpError(400, wrongParameters);
  const { id, value, currency } = result.data;
  if (id === '') throw new HttpError(400, 'could not retrieve payment id');
  if (Math.fround(value) === 0) throw new HttpError(400, 'could not retrieve payment value');
  if (currency === '') throw new HttpError(400, 'could not retrieve payment currency');
  return { id, amount: toMinorUnits(value, currency), currency };
}

/** ISO 4217's code for no currency. */
const noCurrency = 'XXX';

/** The fields of the Antaeus form. Its original client sends `"currency":{}`, which says nothing of a currency. */
const antaeusFields = z.object({
  currency: z.union([text.min(1), z.object({}).transform(() => noCurrency)]).default(noCurrency),
  value: z.number().refine((value) => Number.isFinite(Math.fround(value))),
  customer_id: z.union([z.number(), text]),
});

/**
 * Reads the body of `POST /rest/v1/payments`.
 * @throws {HttpError} 400
 */
export function parseAntaeusPayment(body: unknown): Payment {
  const result = antaeusFields.safeParse(lowerCaseKeys(body));
  if (!result.success) throw new HttpError(400, wrongParameters);
  const { currency, value, customer_id: customer } = result.data;
  return { id: `customer ${customer}`, amount: toMinorUnits(value, currency), currency };
}

/**
 * Reads one of an array of payments, which has to have a key.
 * @throws {HttpError} 400
 */
export function parseKeyedPayment(body: unknown): Payment & { key: string } {
  const given = lowerCaseKeys(body);
  const payment = readPayment(given);
  // Read only here: for a single payment it is one of the further fields.
  const key = given?.idempotencykey;
  if (typeof key !== 'string') throw new HttpError(400, 'could not retrieve idempotency key');
  return { ...payment, key: checkKey(key) };
}

/**
 * Reads an `Idempotency-Key` header, bare or as the quoted string of
 * https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
 * @throws {HttpError} 400
 */
export function parseKey(header: string | undefined): string | undefined {
  return header === undefined ? undefined : checkKey(/^"(.*)"$/.exec(header)?.[1] ?? header);
}

function checkKey(key: string): string {
  if (key === '' || key.length > 255 || key.includes('\0')) throw new HttpError(400, keyRule);
  return key;
}

function lowerCaseKeys(body: unknown): Record<string, unknown> | undefined {
  if (body === null) return {};
  if (typeof body !== 'object' || Array.isArray(body)) return undefined;
  // A loop, as an array of payments has thousands of keys.
  const lowered: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(body)) {
    if (value !== null) lowered[key.toLowerCase()] = value;
  }
  return lowered;
}
