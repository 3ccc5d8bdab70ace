import { integer, must } from '@payloop/chassis/config.ts';
import { crossOrigin } from '@payloop/chassis/guard.ts';
import { errorBody } from '@payloop/chassis/http-error.ts';
import { databaseErrors, error, json, type Body } from '@payloop/chassis/openapi.ts';
import { z } from 'zod';
import { contractInvoice, invoiceName, parseInvoiceName } from './invoices.ts';
import { tallyBody, type Tally } from './payments.ts';
import { appVersion } from './provider.ts';

/** The maximum number of invoices in one response. */
const maxInvoices = 1_000_000;

/** The query parameters of `GET /invoices`. */
export const invoiceQuery = z.object({
  status: z.enum(['paid', 'unpaid'], must('paid or unpaid')).optional(),
  limit: integer(1, maxInvoices).meta({ type: 'integer', minimum: 1, maximum: maxInvoices }).optional(),
  after: z
    .string()
    .regex(invoiceName, must('the id of an invoice, such as I1'))
    .transform(parseInvoiceName)
    .optional(),
});

/** The response after a run that left invoices unpaid for another reason than a decline. */
const unreliable = () => z.object({ ...errorBody().shape, ...tallyBody().shape }).meta({ id: 'Unreliable' });
export type Unreliable = z.infer<ReturnType<typeof unreliable>>;

/** Explains why a run left invoices neither paid nor declined; undefined if it left none. */
export function describeShortfall({ refused, unknown, left = 0 }: Tally): string | undefined {
  if (unknown > 0) return 'the payment provider gave no definite answer';
  if (left > 0) return 'the payment provider was not called for every invoice';
  if (refused > 0) return 'the payment provider refused invoices: change their value or currency';
  return undefined;
}

/** The body of a POST that takes no input. */
export const neverRead: Body = {
  description: 'Optional, and never read.',
  required: false,
  content: { '*/*': null },
};

export const describeVersion = () => ({
  get: {
    summary: 'The answering process and its code version, and the same for the payment provider',
    responses: { 200: json('This process, and a process of the payment provider.', appVersion()) },
  },
});

export const describeInvoices = () => ({
  get: {
    summary: 'Every invoice, in id order',
    query: invoiceQuery,
    responses: {
      200: json('The invoices that match the query.', z.array(contractInvoice())),
      400: error('A parameter is invalid. The error names it and states its rule.'),
      ...databaseErrors(),
    },
  },
});

export const describePay = () => ({
  post: {
    summary: 'Pays every unpaid invoice',
    body: neverRead,
    responses: {
      200: json('Every invoice is paid or was declined.', z.object({})),
      ...crossOrigin(),
      502: json(
        'Invoices stayed unpaid for another reason than a decline. The body counts each outcome.',
        unreliable(),
      ),
      ...databaseErrors(),
    },
  },
});

export const describeReset = () => ({
  post: {
    summary: 'Resets the data of both services once no payment run is in progress',
    body: neverRead,
    responses: {
      200: json('The data is as after the first start.', z.object({})),
      ...crossOrigin(),
      502: error(
        'The payment provider refused, and nothing has changed. Or it is unknown whether it was reset, and nothing is ' +
          'paid until the reset is finished.',
      ),
      503: error(
        'A payment run does not end, another session locks the tables, or the database does not answer.',
      ),
    },
  },
});
