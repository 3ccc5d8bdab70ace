import { crossOrigin } from '@payloop/chassis/guard.ts';
import {
  error,
  json,
  databaseErrors,
  type Addition,
  type Responses,
  type Body,
} from '@payloop/chassis/openapi.ts';
import { z } from 'zod';
import { antaeusResult, charged, outcomeBody } from './cashier.ts';
import {
  antaeusFields,
  epoch,
  idempotencyKey,
  maxKeyLength,
  maxPayments,
  paymentFields,
} from './payment-request.ts';

const lenient =
  'The body is JSON, regardless of `Content-Type`. Field names match in any case, unknown fields are ignored, and ' +
  'null counts as missing. A value is a number that a float32 can hold.';

/** Describes an object as requests may write it: field names in any case, and null for optional fields. */
function anyCase(id: string, schema: z.ZodObject): z.ZodType {
  const { properties: fields = {}, required = [] } = z.toJSONSchema(schema, { io: 'input' });
  const properties: Record<string, unknown> = {};
  const patternProperties: Record<string, unknown> = {};
  for (const [name, field] of Object.entries(fields)) {
    properties[name] = required.includes(name) ? field : { anyOf: [field, { type: 'null' }] };
    patternProperties[inAnyCase(name)] = properties[name];
  }
  // At least one property has the required name.
  const allOf = required.map((name) => ({ not: { propertyNames: { not: { pattern: inAnyCase(name) } } } }));
  // `properties` repeats the patterns for readers and for generators.
  return z.unknown().meta({ id, type: 'object', properties, patternProperties, allOf });
}

function inAnyCase(name: string): string {
  const letters = name.replaceAll(/[a-z]/gi, (letter) => `[${letter.toLowerCase()}${letter.toUpperCase()}]`);
  return `^${letters}$`;
}

/** Describes a body, which is read regardless of its type. */
function body(schema: z.ZodType, description = lenient): Body {
  return { description, required: true, content: { 'application/json': schema, '*/*': schema } };
}

const keyHeader = () =>
  z.object({
    'Idempotency-Key': z
      .string()
      .optional()
      .meta({
        description:
          'The first definite answer (200 or 402) to a key is its answer for ever. Bare, or as a quoted string.',
        anyOf: [
          { pattern: `^".{1,${maxKeyLength}}"$` },
          { minLength: 1, maxLength: maxKeyLength, not: { pattern: '^".*"$' } },
        ],
      }),
  });

const epochHeader = () =>
  z.object({
    'Ledger-Epoch': epoch.optional().meta({
      description:
        'Identifies the data of the request. After `POST /reset` with the same epoch, nothing is charged for it.',
    }),
  });

const hit = () =>
  z.object({
    'Idempotency-Hit': z
      .literal('true')
      .optional()
      .meta({ description: 'The key has had this answer before.' }),
  });

const retryAfter = () => z.object({ 'Retry-After': z.string().meta({ description: 'In seconds.' }) });

const refused = (): Responses => ({
  400: error('The request is invalid. The error is the first reason that applies.'),
  409: error('The first request with this key is still in flight.', retryAfter()),
  410: error('`Ledger-Epoch` identifies data that was reset; nothing was charged.'),
  413: error('The body is larger than 512 kB.'),
  415: error('`Content-Encoding` is unknown.'),
  422: error('The key was used for another id, value or currency; nothing was charged.'),
  ...crossOrigin(),
  ...databaseErrors(),
});

export const describePay = () => {
  const element = anyCase('KeyedPayment', paymentFields.extend({ idempotencyKey }));
  const wrong = z.unknown().meta({ description: 'Anything else: its outcome has the status 400.' });
  const payments = z
    .array(z.union([element, wrong]))
    .max(maxPayments)
    .meta({ description: 'Payments, each with a key of its own; the header is not read.' });
  return {
    post: {
      summary: 'Charges a payment, or an array of them',
      description:
        'Without a key every request is a payment of its own. `FAILURE_RATE` sets the share of the payments that is ' +
        'declined.',
      headers: keyHeader().extend(epochHeader().shape),
      body: body(z.union([anyCase('Payment', paymentFields), payments])),
      responses: {
        ...refused(),
        200: json(
          'Charged. The answer to an array has the outcome of each payment, in the same order.',
          z.union([charged(), z.array(outcomeBody())]),
          hit(),
        ),
        402: error('Declined.', hit()),
      },
    },
  };
};

export const describePayAntaeus = () => ({
  post: {
    summary: 'Charges a payment in the Antaeus form',
    headers: keyHeader().extend(epochHeader().shape),
    body: body(
      anyCase('AntaeusPayment', antaeusFields),
      `${lenient} A currency that is an object, as the original client sends it, counts as missing.`,
    ),
    responses: { ...refused(), 200: json('Whether it was charged, or declined.', antaeusResult(), hit()) },
  },
});

export const describeReset = () => ({
  post: {
    summary: 'Forgets every payment',
    description:
      'With `Ledger-Epoch`, only once: a repeated request keeps the payments charged since the first one.',
    headers: epochHeader(),
    responses: {
      200: json('Forgotten.', z.object({})),
      400: error('`Ledger-Epoch` is not a UUID.'),
      ...crossOrigin(),
      ...databaseErrors(),
    },
  },
});

/** Describes the header of every response to a payment. */
export const describeKeys = (): Addition => ({
  responseHeaders: z.object({
    'Accept-Idempotency-Key': z.literal('true').optional().meta({
      description:
        'A request may be retried under its key. Absent if the request was rejected before it was read.',
    }),
  }),
});

/** Describes the routes behind `requireToken`. */
export const describeToken = (): Addition => ({
  security: { token: { type: 'http', scheme: 'bearer', description: 'A service account’s token.' } },
  responses: {
    401: error('The token is missing or invalid.', z.object({ 'WWW-Authenticate': z.literal('Bearer') })),
    403: error(
      'The token belongs to another account, or a browser sent the request on behalf of another origin.',
    ),
    503: error(
      'The database does not answer; or, with `Retry-After`, the keys that verify tokens cannot be loaded.',
      retryAfter().partial(),
    ),
  },
});
