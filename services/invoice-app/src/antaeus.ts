import type { Database } from '@payloop/chassis/database.ts';
import { crossOrigin } from '@payloop/chassis/guard.ts';
import { toMajorUnits } from '@payloop/chassis/money.ts';
import { databaseErrors, error, json } from '@payloop/chassis/openapi.ts';
import { route } from '@payloop/chassis/server.ts';
import type { Express, Handler, Response } from 'express';
import { z } from 'zod';
import { neverRead } from './description.ts';
import {
  findCustomer,
  findInvoice,
  listCustomers,
  listInvoices,
  type Customer,
  type ListedInvoice,
} from './invoices.ts';
import { sendPages } from './pagination.ts';

/** An invoice in the format of Antaeus. */
const antaeusInvoice = () =>
  z
    .object({
      id: z.int().min(1),
      customerId: z.int(),
      amount: z.object({ value: z.number().meta({ description: 'In major units.' }), currency: z.string() }),
      status: z.enum(['PENDING', 'PAID']),
    })
    .meta({ id: 'AntaeusInvoice' });

const antaeusCustomer = () => z.object({ id: z.int(), currency: z.string() }).meta({ id: 'AntaeusCustomer' });

export interface AntaeusOptions {
  database: Database;
  /** Limits how many lists are sent at a time. */
  listLimit: Handler;
  /** Pays every payable invoice. Resolves to true if none is unpaid afterwards. */
  payAll: (response: Response) => Promise<boolean>;
}

/** Adds the routes of pleo-io/antaeus, for its clients. */
export function addAntaeusRoutes(app: Express, { database, listLimit, payAll }: AntaeusOptions): void {
  // In JSON, like every response of Antaeus.
  const answerHealth: Handler = (_request, response) => void response.json('ok');
  route(app, '/rest/health', { get: answerHealth }, () => ({
    get: { summary: 'Whether the process runs', responses: { 200: json('It runs.', z.literal('ok')) } },
  }));
  const pay: Handler = async (_request, response) => {
    response.json(await payAll(response));
  };
  // Added before the route with `:id`, which matches `pay` too.
  route(app, '/rest/v1/invoices/pay', { post: pay }, () => ({
    post: {
      summary: 'Pays every unpaid invoice',
      description: 'A declined invoice does not stop the others from being paid.',
      body: neverRead,
      responses: {
        200: json('Whether every invoice is paid now.', z.boolean()),
        ...crossOrigin(),
        ...databaseErrors(),
      },
    },
  }));
  const sendInvoices: Handler = (_request, response) =>
    sendPages(response, listInvoices(database), toAntaeusInvoice);
  route(app, '/rest/v1/invoices', { get: [listLimit, sendInvoices] }, () =>
    describeList('Every invoice, in id order', antaeusInvoice()),
  );
  route(
    app,
    '/rest/v1/invoices/:id',
    { get: sendOne((id) => findInvoice(database, id), toAntaeusInvoice) },
    () => describeOne('An invoice', antaeusInvoice()),
  );
  const sendCustomers: Handler = (_request, response) =>
    sendPages(response, listCustomers(database), toAntaeusCustomer);
  route(app, '/rest/v1/customers', { get: [listLimit, sendCustomers] }, () =>
    describeList('Every customer, in id order', antaeusCustomer()),
  );
  route(
    app,
    '/rest/v1/customers/:id',
    { get: sendOne((id) => findCustomer(database, id), toAntaeusCustomer) },
    () => describeOne('A customer', antaeusCustomer()),
  );
}

function toAntaeusInvoice({
  id,
  customerId,
  amount,
  currency,
  paid,
}: ListedInvoice): z.infer<ReturnType<typeof antaeusInvoice>> {
  const money = { value: toMajorUnits(amount, currency), currency };
  return { id, customerId, amount: money, status: paid ? 'PAID' : 'PENDING' };
}

function toAntaeusCustomer({ id, currency }: Customer): z.infer<ReturnType<typeof antaeusCustomer>> {
  return { id, currency };
}

/** Responds with the row that the path names, or with 404 and a JSON string, as the original Antaeus does. */
function sendOne<T>(find: (id: number) => Promise<T | undefined>, toBody: (row: T) => object): Handler {
  return async (request, response) => {
    const { id = '' } = request.params as { id?: string };
    // Only a number can name a row.
    const row = /^[1-9]\d{0,14}$/.test(id) ? await find(Number(id)) : undefined;
    if (row === undefined) response.status(404).json('not found');
    else response.json(toBody(row));
  };
}

const describeList = (summary: string, schema: z.ZodType) => ({
  get: { summary, responses: { 200: json('The whole list.', z.array(schema)), ...databaseErrors() } },
});

const describeOne = (summary: string, schema: z.ZodType) => ({
  get: {
    summary,
    path: z.object({ id: z.string().meta({ type: 'integer', minimum: 1 }) }),
    responses: {
      200: json('The one with this id.', schema),
      400: error('The path cannot be decoded.'),
      404: json('No record has this id.', z.literal('not found')),
      ...databaseErrors(),
    },
  },
});
