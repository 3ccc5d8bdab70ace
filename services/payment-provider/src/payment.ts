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
/** The most characters of an idempotency key. */
export const keyLength = 255;
const keyRule = `an idempotency key must have 1 to ${keyLength} characters`;
const couldNot = (field: string) => `could not retrieve ${field}`;

/** Text that Postgres can store: any but U+0000. */
const storable = /^[^\0]*$/;
/** A field that is missing is said by its name; of a wrong type is any other value. */
const missing = (field: string) => ({
  error: ({ input }: { input?: unknown }) => (input === undefined ? couldNot(field) : wrongParameters),
});
/** The least number that is infinite as a float32, which is what the original reads. */
const tooLarge = 2 ** 128 - 2 ** 103;
/** The greatest number that is zero as a float32. */
const asZero = 2 ** -150;

/** An amount of money in major units: a number that a float32 can hold. */
const amount = z
  .number(missing('payment value'))
  .gt(-tooLarge, wrongParameters)
  .lt(tooLarge, wrongParameters);

/** The fields of a payment, by lower-cased name. */
export const paymentFields = z.object(
  {
    id: z.string(missing('payment id')).regex(storable, wrongParameters).min(1, couldNot('payment id')),
    value: amount
      .refine((value) => Math.fround(value) !== 0, couldNot('payment value'))
      .meta({ description: 'In major units.', not: { minimum: -asZero, maximum: asZero } }),
    currency: z
      .string(missing('payment currency'))
      .regex(storable, wrongParameters)
      .min(1, couldNot('payment currency')),
  },
  wrongParameters,
);

/** What makes a repeated request the same payment. */
export const idempotencyKey = z
  .string(couldNot('idempotency key'))
  .min(1, keyRule)
  .max(keyLength, keyRule)
  .regex(storable, keyRule);

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
  const result = paymentFields.safeParse(given);
  if (!result.success) throw new HttpError(400, firstError(result.error));
  const { id, value, currency } = result.data;
  return { id, amount: toMinorUnits(value, currency), currency };
}

/** A wrong type comes before what is missing, wherever it is. */
function firstError({ issues }: z.ZodError): string {
  const messages = issues.map(({ message }) => message);
  return messages.includes(wrongParameters) ? wrongParameters : messages[0]!;
}

/** ISO 4217's code for no currency. */
const noCurrency = 'XXX';

const text = z.string().regex(storable);

/** The fields of the Antaeus form. Its original client sends `"currency":{}`, which says nothing of a currency. */
export const antaeusFields = z.object({
  currency: z.union([text.min(1), z.object({}).transform(() => noCurrency)]).default(noCurrency),
  value: amount,
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
  return { ...payment, key: checkKey(given?.idempotencykey) };
}

/** The id of a payment that may be wrong otherwise; undefined where it has none. */
export function readId(body: unknown): string | undefined {
  const result = paymentFields.shape.id.safeParse(lowerCaseKeys(body)?.id);
  return result.success ? result.data : undefined;
}

/**
 * Reads an `Idempotency-Key` header, bare or as the quoted string of
 * https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
 * @throws {HttpError} 400
 */
export function parseKey(header: string | undefined): string | undefined {
  return header === undefined ? undefined : checkKey(/^"(.*)"$/.exec(header)?.[1] ?? header);
}

function checkKey(key: unknown): string {
  const result = idempotencyKey.safeParse(key);
  if (!result.success) throw new HttpError(400, firstError(result.error));
  return result.data;
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
