import { crossSite } from '@payloop/chassis/guard.ts';
import {
  error,
  json,
  databaseErrors,
  type Addition,
  type Answers,
  type Body,
} from '@payloop/chassis/openapi.ts';
import { z } from 'zod';
import { antaeusResult, charged, outcomeBody } from './cashier.ts';
import {
  antaeusFields,
  epoch,
  idempotencyKey,
  keyLength,
  mostPayments,
  paymentFields,
} from './payment-request.ts';

const lenient =
  'The body is JSON whatever `Content-Type` says. Keys match in any case, further fields are ignored, and null is ' +
  'as if it were not there. A value is a number that a float32 can hold.';

/** An object as a request may write it: its keys in any case, null for what may be absent. */
function anyCase(id: string, schema: z.ZodObject): z.ZodType {
  const { properties: fields = {}, required = [] } = z.toJSONSchema(schema, { io: 'input' });
  const properties: Record<string, unknown> = {};
  const patternProperties: Record<string, unknown> = {};
  for (const [name, field] of Object.entries(fields)) {
    properties[name] = required.includes(name) ? field : { anyOf: [field, { type: 'null' }] };
    patternProperties[inAnyCase(name)] = properties[name];
  }
  // At least one of the names is this one.
  const allOf = required.map((name) => ({ not: { propertyNames: { not: { pattern: inAnyCase(name) } } } }));
  // `properties` for those who read it, and for generators: the patterns say the same.
  return z.unknown().meta({ id, type: 'object', properties, patternProperties, allOf });
}

function inAnyCase(name: string): string {
  const letters = name.replaceAll(/[a-z]/gi, (letter) => `[${letter.toLowerCase()}${letter.toUpperCase()}]`);
  return `^${letters}$`;
}

/** A body is read whatever its type says. */
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
          'The first definite answer (200 or 402) to a key is the answer for ever. Bare, or as a quoted string.',
        anyOf: [
          { pattern: `^".{1,${keyLength}}"$` },
          { minLength: 1, maxLength: keyLength, not: { pattern: '^".*"$' } },
        ],
      }),
  });

const epochHeader = () =>
  z.object({
    'Ledger-Epoch': epoch.optional().meta({
      description:
        'Names the data that the request is part of: after `POST /reset` with it, nothing is charged for it.',
    }),
  });

const hit = () =>
  z.object({
    'Idempotency-Hit': z
      .literal('true')
      .optional()
      .meta({ description: 'The key was answered before, with this.' }),
  });

const retryAfter = () => z.object({ 'Retry-After': z.string().meta({ description: 'In seconds.' }) });

const refused = (): Answers => ({
  400: error('The request is wrong: the first reason that applies.'),
  409: error('The first request with this key is still at work.', retryAfter()),
  410: error('`Ledger-Epoch` names data that were reset since; nothing was charged.'),
  413: error('The body is larger than 512 kB.'),
  415: error('`Content-Encoding` is none that is known.'),
  422: error('The key was used for another id, value or currency; nothing was charged.'),
  ...crossSite(),
  ...databaseErrors(),
});

export const describePay = () => {
  const element = anyCase('KeyedPayment', paymentFields.extend({ idempotencyKey }));
  const wrong = z.unknown().meta({ description: 'Anything else: its outcome has the status 400.' });
  const payments = z
    .array(z.union([element, wrong]))
    .max(mostPayments)
    .meta({ description: 'Payments, each with a key of its own; the header is not read.' });
  return {
    post: {
      summary: 'Charges a payment, or an array of them',
      description:
        'Without a key every request is a payment of its own. A share of the payments is declined where ' +
        '`FAILURE_RATE` says so.',
      headers: keyHeader().extend(epochHeader().shape),
      body: body(z.union([anyCase('Payment', paymentFields), payments])),
      answers: {
        ...refused(),
        200: json(
          'Charged; of an array, what each payment came to, in its order.',
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
      `${lenient} A currency that is an object, as the original client sends it, is as none.`,
    ),
    answers: { ...refused(), 200: json('Whether it was charged, or declined.', antaeusResult(), hit()) },
  },
});

export const describeReset = () => ({
  post: {
    summary: 'Forgets every payment',
    description:
      'With `Ledger-Epoch`, once: what is charged afterwards is kept when the same request comes again.',
    headers: epochHeader(),
    answers: {
      200: json('Forgotten.', z.object({})),
      400: error('`Ledger-Epoch` is no UUID.'),
      ...crossSite(),
      ...databaseErrors(),
    },
  },
});

/** Of answers to payments. */
export const describeKeys = (): Addition => ({
  answerHeaders: z.object({
    'Accept-Idempotency-Key': z.literal('true').optional().meta({
      description: 'A request may be repeated under its key. Absent where it was not looked at.',
    }),
  }),
});

/** Of what is behind `requireToken`. */
export const describeToken = (): Addition => ({
  security: { token: { type: 'http', scheme: 'bearer', description: 'A service account’s token.' } },
  answers: {
    401: error('No token, or none that is valid.', z.object({ 'WWW-Authenticate': z.literal('Bearer') })),
    403: error('Somebody else’s token; or a browser sends it for another site.'),
    503: error(
      'The database does not answer; or, with `Retry-After`, the keys to check tokens with cannot be had.',
      retryAfter().partial(),
    ),
  },
});
