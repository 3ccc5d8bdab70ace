import { HttpError } from '@payloop/chassis/http-error.ts';
import { isExact, minAmount, mayBeInexact, toCurrency, toMinorUnits } from '@payloop/chassis/money.ts';
import { z } from 'zod';

/** A payment that a client requests. */
export interface Payment {
  /** The client's own id. It is not unique here: without an idempotency key every request is a payment of its own. */
  id: string;
  /** In minor units, rounded half away from zero if the value has more decimals than its currency. */
  amount: bigint;
  currency: string;
  /** The idempotency key: a repeated request with it is the same payment. */
  key?: string | undefined;
}

/** The maximum number of payments in one request. */
export const maxPayments = 1_000;

const wrongParameters = 'failed to process payment request parameters';
/** The maximum length of an idempotency key, in characters. */
export const maxKeyLength = 255;
const keyRule = `an idempotency key must have 1 to ${maxKeyLength} characters`;
const couldNot = (field: string) => `could not retrieve ${field}`;

/** Text that Postgres stores unchanged: without U+0000 and without lone surrogates. */
const storable = /^[^\0\ud800-\udfff]*$/u;
/** The maximum length of an id, and that of a currency, in characters. */
const maxIdLength = 255;
const maxCurrencyLength = 32;
const tooLong = (field: string, max: number) => `a ${field} must have at most ${max} characters`;
/** The error for a missing field names the field; any other value has a wrong type. */
const missing = (field: string) => ({
  error: ({ input }: { input?: unknown }) => (input === undefined ? couldNot(field) : wrongParameters),
});
/** The smallest number that is infinite as a float32, the type in which the original provider reads a value. */
const tooLarge = 2 ** 128 - 2 ** 103;

/** An amount of money in major units: a number that a float32 can hold. */
const amount = z
  .number(missing('payment value'))
  .gt(-tooLarge, wrongParameters)
  .lt(tooLarge, wrongParameters);

/** The fields of a payment, by lower-cased name. */
export const paymentFields = z.object(
  {
    id: z
      .string(missing('payment id'))
      .regex(storable, wrongParameters)
      .min(1, couldNot('payment id'))
      .max(maxIdLength, tooLong('payment id', maxIdLength)),
    value: amount
      .refine((value) => Math.abs(value) >= minAmount, couldNot('payment value'))
      .meta({
        description: 'In major units. A value that rounds to 0 in its currency counts as missing.',
        not: { exclusiveMinimum: -minAmount, exclusiveMaximum: minAmount },
      }),
    currency: z
      .string(missing('payment currency'))
      .regex(storable, wrongParameters)
      .min(1, couldNot('payment currency'))
      .max(maxCurrencyLength, tooLong('payment currency', maxCurrencyLength))
      .meta({ description: 'A code of three letters may be in either case.' }),
  },
  wrongParameters,
);

/** The schema of an idempotency key, which makes a repeated request the same payment. */
export const idempotencyKey = z
  .string(couldNot('idempotency key'))
  .min(1, keyRule)
  .max(maxKeyLength, keyRule)
  .regex(storable, keyRule);

/** The schema of an epoch, which identifies the client's data that a payment belongs to. */
export const epoch = z.guid();
const optionalEpoch = epoch.optional();

const ascii = /^[\x20-\x7e]*$/;
/** Throws on invalid UTF-8, as a replacement character would turn two keys into one. */
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/**
 * Reads a body as JSON in UTF-8, regardless of its type.
 * @throws {HttpError} 400 if it is not JSON
 */
export function parseBody(body: Buffer | undefined): unknown {
  try {
    const text = utf8.decode(body);
    const parsed: unknown = JSON.parse(text);
    // A reviver is slow, so it runs only if a number is large.
    const payments: unknown[] = Array.isArray(parsed) ? parsed : [parsed];
    return payments.some(hasInexact) ? JSON.parse(text, dropInexact) : parsed;
  } catch {
    throw new HttpError(400, wrongParameters);
  }
}

function hasInexact(payment: unknown): boolean {
  for (const name in payment as object)
    if (mayBeInexact((payment as Record<string, unknown>)[name])) return true;
  return false;
}

/** The numeric fields that must be exact: the value and the customer. */
const exactFields = new Set(['value', 'customer_id']);

/** Replaces a number that a double cannot hold by NaN, so that only its payment is refused. */
function dropInexact(key: string, value: unknown, { source = '' }: { source?: string } = {}): unknown {
  const isNumber = typeof value === 'number' && exactFields.has(key.toLowerCase());
  return isNumber && !isExact(value, source) ? NaN : value;
}

/**
 * Reads one payment as the original provider does (see docs/differences.md): field names match in any case, `null`
 * counts as missing, and unknown fields are ignored.
 * @throws {HttpError} 400 with the first error that applies
 */
export function parsePayment(body: unknown): Payment {
  return readPayment(lowerCaseKeys(body));
}

function readPayment(given: Record<string, unknown> | undefined): Payment {
  const result = paymentFields.safeParse(given);
  if (!result.success) throw new HttpError(400, firstError(result.error));
  const { id, value } = result.data;
  const currency = toCurrency(result.data.currency);
  const minor = toMinorUnits(value, currency);
  if (minor === 0n) throw new HttpError(400, couldNot('payment value'));
  return { id, amount: minor, currency };
}

/** Returns the first error. A wrong type in any field precedes missing fields. */
function firstError({ issues }: z.ZodError): string {
  const messages = issues.map(({ message }) => message);
  return messages.includes(wrongParameters) ? wrongParameters : messages[0]!;
}

/** ISO 4217's code for no currency. */
const noCurrency = 'XXX';

const text = (max: number) => z.string().regex(storable).max(max);
/** Leaves room for the prefix of the payment's id in the Antaeus form. */
const maxCustomerLength = maxIdLength - 'customer '.length;

/** The fields of the Antaeus form. Its original client sends `"currency":{}`, which names no currency. */
export const antaeusFields = z.object({
  currency: z
    .union([text(maxCurrencyLength).min(1), z.object({}).transform(() => noCurrency)])
    .default(noCurrency),
  value: amount,
  customer_id: z.union([z.number(), text(maxCustomerLength)]),
});

/**
 * Reads the body of `POST /rest/v1/payments`.
 * @throws {HttpError} 400
 */
export function parseAntaeusPayment(body: unknown): Payment {
  const result = antaeusFields.safeParse(lowerCaseKeys(body));
  if (!result.success) throw new HttpError(400, wrongParameters);
  const { value, customer_id: customer } = result.data;
  const currency = toCurrency(result.data.currency);
  const minor = toMinorUnits(value, currency);
  // Accepts 0, as the original does. An amount that only rounds to 0 is a mistake.
  if (minor === 0n && value !== 0) throw new HttpError(400, wrongParameters);
  return { id: `customer ${customer}`, amount: minor, currency };
}

/**
 * Reads one payment of an array, which must have a key.
 * @throws {HttpError} 400
 */
export function parseKeyedPayment(body: unknown): Payment & { key: string } {
  const given = lowerCaseKeys(body);
  const payment = readPayment(given);
  // Only arrays have this field: in a single payment it is an unknown field.
  return { ...payment, key: checkKey(given?.idempotencykey) };
}

/** Reads the id of a payment that may be invalid otherwise; undefined if the id is missing or invalid. */
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
  if (header === undefined) return undefined;
  const key = decodeHeader(header);
  return checkKey(/^"(.*)"$/.exec(key)?.[1] ?? key);
}

/** Decodes a header as UTF-8, so that it is the same key as in a body. Node reads each byte as a character. */
function decodeHeader(header: string): string {
  if (ascii.test(header)) return header;
  try {
    return utf8.decode(Buffer.from(header, 'latin1'));
  } catch {
    throw new HttpError(400, keyRule);
  }
}

/**
 * Reads a `Ledger-Epoch` header.
 * @throws {HttpError} 400
 */
export function parseEpoch(header: string | undefined): string | undefined {
  const result = optionalEpoch.safeParse(header);
  if (!result.success) throw new HttpError(400, 'Ledger-Epoch must be a UUID');
  return result.data;
}

function checkKey(key: unknown): string {
  const result = idempotencyKey.safeParse(key);
  if (!result.success) throw new HttpError(400, firstError(result.error));
  return result.data;
}

function lowerCaseKeys(body: unknown): Record<string, unknown> | undefined {
  if (body === null) return {};
  if (typeof body !== 'object' || Array.isArray(body)) return undefined;
  // A loop for speed, as an array of payments has thousands of keys. Without a prototype, `__proto__` is a key like any
  // other.
  const lowered: Record<string, unknown> = Object.create(null);
  for (const [key, value] of Object.entries(body)) {
    if (value !== null) lowered[key.toLowerCase()] = value;
  }
  return lowered;
}
