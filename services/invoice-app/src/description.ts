import { integer, must } from '@payloop/chassis/config.ts';
import { crossSite } from '@payloop/chassis/guard.ts';
import { errorBody } from '@payloop/chassis/http-error.ts';
import { databaseErrors, error, json, type Body } from '@payloop/chassis/openapi.ts';
import { z } from 'zod';
import { contractInvoice, invoiceName, parseInvoiceName } from './invoices.ts';
import { tallyBody, type Tally } from './payments.ts';
import { appVersion } from './provider.ts';

/** The most that may be asked for at a time. */
const mostInvoices = 1_000_000;

/** What may be asked of `GET /invoices`. */
export const invoiceQuery = z.object({
  status: z.enum(['paid', 'unpaid'], must('paid or unpaid')).optional(),
  limit: integer(1, mostInvoices).meta({ type: 'integer', minimum: 1, maximum: mostInvoices }).optional(),
  after: z
    .string()
    .regex(invoiceName, must('the id of an invoice, such as I1'))
    .transform(parseInvoiceName)
    .optional(),
});

/** What a run is answered with that left invoices unpaid for another reason than a decline. */
const unreliable = () => z.object({ ...errorBody().shape, ...tallyBody().shape }).meta({ id: 'Unreliable' });
export type Unreliable = z.infer<ReturnType<typeof unreliable>>;

/** Why a run did not end with every invoice paid or declined; undefined where it did. */
export function describeShortfall({ refused, unknown, left = 0 }: Tally): string | undefined {
  if (unknown > 0) return 'the payment provider gave no definite answer';
  if (left > 0) return 'the payment provider was not asked for every invoice';
  if (refused > 0) return 'the payment provider refused invoices: change their value or currency';
  return undefined;
}

/** Of what is posted without anything to say. */
export const neverRead: Body = {
  description: 'Anything or nothing: it is never read.',
  required: false,
  content: { '*/*': null },
};

export const describeVersion = () => ({
  get: {
    summary: 'Who answers, with which code, and the same of the payment provider',
    answers: { 200: json('The process, and a process of the payment provider.', appVersion()) },
  },
});

export const describeInvoices = () => ({
  get: {
    summary: 'Every invoice, in id order',
    query: invoiceQuery,
    answers: {
      200: json('All of them, or those that were asked for.', z.array(contractInvoice())),
      400: error('A parameter is wrong: which, and what it must be.'),
      ...databaseErrors(),
    },
  },
});

export const describePay = () => ({
  post: {
    summary: 'Pays every unpaid invoice',
    body: neverRead,
    answers: {
      200: json('Each is paid, or was declined.', z.object({})),
      ...crossSite(),
      502: json('Some stayed unpaid for another reason than a decline: how many ended how.', unreliable()),
      ...databaseErrors(),
    },
  },
});

export const describeReset = () => ({
  post: {
    summary: 'Makes the data of both services anew, once no run is under way',
    body: neverRead,
    answers: {
      200: json('They are as after the first start.', z.object({})),
      ...crossSite(),
      502: error(
        'The payment provider refused, and nothing has changed; or it is unknown whether it was reset, and nothing is ' +
          'paid until that is finished.',
      ),
      503: error('A run does not end, another session holds the tables, or the database does not answer.'),
    },
  },
});
