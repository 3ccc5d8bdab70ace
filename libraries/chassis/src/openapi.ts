import type { Express } from 'express';
import { z } from 'zod';
import { errorBody } from './http-error.ts';
import { version } from './self.ts';

/** The description of one method of a path. */
export interface Operation {
  summary: string;
  description?: string;
  /** Parameters in the path and in the query, and the headers that the handler reads. All are text. */
  path?: z.ZodObject;
  query?: z.ZodObject;
  headers?: z.ZodObject;
  body?: Body;
  /** By status. The document describes a wrong method (405) and an unknown path (404) once for all paths. */
  responses: Responses;
}

export interface Body {
  description: string;
  required: boolean;
  /** By media type; null allows any content. */
  content: Record<string, z.ZodType | null>;
}

export type Responses = Record<number, ResponseDescription>;

export interface ResponseDescription {
  description: string;
  /** By media type; undefined if there is no body. */
  content?: Record<string, z.ZodType>;
  /** Headers beyond the usual ones of HTTP. Optional in the schema if a response may lack them. */
  headers?: z.ZodObject;
}

/** The part that a middleware adds to the descriptions of the routes after it. */
export interface Addition {
  headers?: z.ZodObject;
  responses?: Responses;
  /** Headers of every response. */
  responseHeaders?: z.ZodObject;
  /** OpenAPI security schemes, by name. */
  security?: Record<string, object>;
}

/** A JSON response. */
export function json(description: string, schema: z.ZodType, headers?: z.ZodObject): ResponseDescription {
  return { description, content: { 'application/json': schema }, ...(headers && { headers }) };
}

/** A text response, or one of another media type. */
export function text(
  description: string,
  schema: z.ZodType = z.string(),
  type = 'text/plain',
): ResponseDescription {
  return { description, content: { [type]: schema } };
}

/** An error response: `{"error": …}`. */
export function error(description: string, headers?: z.ZodObject): ResponseDescription {
  return json(description, errorBody(), headers);
}

/** The error responses of any request that uses the database. */
export const databaseErrors = (): Responses => ({
  503: error(
    'The database is unavailable or the service is overloaded. If overloaded, `Retry-After` says when to retry.',
    z.object({ 'Retry-After': z.string().optional() }),
  ),
});

/** The methods that can be described. GET includes HEAD. */
export type Method = 'get' | 'post';
type Operations = Partial<Record<Method, Operation>>;
type Addable = (method: Method) => Addition;

interface Described {
  path: string;
  /** Called only when a client requests the document, so that descriptions slow down neither start nor reload. */
  describe: () => Operations;
  additions: Addable[];
}

const ok = () => text('Yes.', z.literal('ok'));

export const describeStarted = () => ({
  get: { summary: 'Whether the process has started', responses: { 200: ok() } },
});

export const describeLive = () => ({
  get: { summary: 'Whether the process is alive', responses: { 200: ok() } },
});

export const describeReady = () => ({
  get: {
    summary: 'Whether the service is ready: its database answers and has the current schema',
    responses: { 200: ok(), 503: error('No, or the service is shutting down. The error is the reason.') },
  },
});

export const describeVersion = () => ({
  get: {
    summary: 'Which process answers, with which code',
    responses: { 200: json('The process.', version()) },
  },
});

export const describeDocument = () => ({
  get: {
    summary: 'This document',
    responses: { 200: json('OpenAPI 3.1', z.looseObject({ openapi: z.string() })) },
  },
});

/** For every request that is logged, see `observeRequests` in server.ts. */
export const describeRequestId = (): Addition => ({
  headers: z.object({
    'X-Request-Id': z.string().optional().meta({
      description:
        'Identifies the request in the logs of all services; generated unless 1 to 64 characters of A-Za-z0-9_.-',
    }),
  }),
  responseHeaders: z.object({ 'X-Request-Id': z.string() }),
});

/** The routes and additions of each app, in the order of registration. */
const apps = new WeakMap<Express, { routes: Described[]; additions: Addable[] }>();

function descriptionOf(app: Express) {
  const known = apps.get(app) ?? { routes: [], additions: [] };
  apps.set(app, known);
  return known;
}

/** Registers the description of a path's methods. */
export function describeRoute(app: Express, path: string, describe: () => Operations): void {
  const { routes, additions } = descriptionOf(app);
  routes.push({ path, describe, additions: [...additions] });
}

/** Adds to the description of every route registered after this call. */
export function describeAll(app: Express, addition: Addable): void {
  descriptionOf(app).additions.push(addition);
}

/** Creates the OpenAPI 3.1 document of an app. */
export function createDocument(app: Express, title: string): object {
  const paths: Record<string, object> = {};
  const securitySchemes: Record<string, object> = {};
  const schemas = new Schemas();
  for (const { path, describe, additions } of descriptionOf(app).routes) {
    const operations = Object.entries(describe()).map(([method, operation]) => {
      const added = additions.map((addition) => addition(method as Method));
      for (const { security } of added) Object.assign(securitySchemes, security);
      return [method, toOperation(schemas, operation, added, operationId(method, path))];
    });
    paths[path.replaceAll(/:(\w+)/g, '{$1}')] = Object.fromEntries(operations);
  }
  // The headers that middleware adds, for the three responses below. They are optional: a path registered before the
  // middleware has none of them, and a response to a POST lacks those that only GET gets.
  const addedHeaders = descriptionOf(app).additions.flatMap(
    (addition) => addition('get').responseHeaders?.partial() ?? [],
  );
  const notAllowed = error('No such method at this path.', z.object({ Allow: z.string() }));
  const responses = {
    NotFound: toResponse(schemas, error('No such path.'), addedHeaders),
    MethodNotAllowed: toResponse(schemas, notAllowed, addedHeaders),
    Misdirected: toResponse(
      schemas,
      error('In development, the service does not accept this `Host`.'),
      addedHeaders,
    ),
  };
  return {
    openapi: '3.1.1',
    info: {
      title,
      version: '1',
      description:
        'HEAD is answered like GET, without the body. Any other method of a path gets 405 with `Allow` (see the ' +
        'response `MethodNotAllowed`), and an unknown path gets 404 (`NotFound`). In development, a request gets 421 ' +
        '(`Misdirected`) if its `Host` is neither an IP address nor a name of loopback or of this service; the probes ' +
        'answer for any `Host`.',
    },
    paths,
    components: { schemas: schemas.named, responses, securitySchemes },
  };
}

/** For example, `GET /rest/v1/invoices/:id` becomes getRestV1InvoicesId. */
function operationId(method: string, path: string): string {
  const words = path.split(/\W+/).filter((word) => word !== '');
  return method + words.map((word) => word[0]!.toUpperCase() + word.slice(1)).join('');
}

function toOperation(schemas: Schemas, operation: Operation, added: Addition[], id: string): object {
  const { summary, description, path, query, headers, body } = operation;
  const parameters = [
    ...toParameters(schemas, 'path', path),
    ...toParameters(schemas, 'query', query),
    ...[headers, ...added.map((each) => each.headers)].flatMap((each) =>
      toParameters(schemas, 'header', each),
    ),
  ];
  const all: Responses = Object.assign({}, operation.responses, ...added.map((each) => each.responses));
  all[500] ??= error('An internal error. The log of the service has the details.');
  const responseHeaders = added.flatMap((each) => each.responseHeaders ?? []);
  const responses = Object.entries(all).map(([status, response]) => [
    status,
    toResponse(schemas, response, responseHeaders),
  ]);
  const security = added.flatMap((each) => Object.keys(each.security ?? {}));
  return {
    operationId: id,
    summary,
    ...(description !== undefined && { description }),
    ...(parameters.length > 0 && { parameters }),
    ...(body && { requestBody: toRequestBody(schemas, body) }),
    responses: Object.fromEntries(responses),
    ...(security.length > 0 && { security: security.map((name) => ({ [name]: [] })) }),
  };
}

function toParameters(schemas: Schemas, place: string, schema: z.ZodObject | undefined): object[] {
  return Object.entries(schema?.shape ?? {}).map(([name, each]) => ({
    name,
    in: place,
    required: isRequired(each as z.ZodType),
    schema: schemas.add(each as z.ZodType, 'input'),
  }));
}

function toRequestBody(schemas: Schemas, { description, required, content }: Body): object {
  const types = Object.entries(content).map(([type, schema]) => [
    type,
    schema === null ? {} : { schema: schemas.add(schema, 'input') },
  ]);
  return { description, required, content: Object.fromEntries(types) };
}

function toResponse(schemas: Schemas, response: ResponseDescription, more: z.ZodObject[]): object {
  const { description, content = {}, headers } = response;
  const types = Object.entries(content).map(([type, schema]) => [
    type,
    { schema: schemas.add(schema, 'output') },
  ]);
  const named = [...(headers ? [headers] : []), ...more].flatMap(({ shape }) => Object.entries(shape));
  const described = named.map(([name, schema]) => [
    name,
    { required: isRequired(schema as z.ZodType), schema: schemas.add(schema as z.ZodType, 'output') },
  ]);
  return {
    description,
    ...(described.length > 0 && { headers: Object.fromEntries(described) }),
    ...(types.length > 0 && { content: Object.fromEntries(types) }),
  };
}

function isRequired(schema: z.ZodType): boolean {
  return !schema.safeParse(undefined).success;
}

/** The schemas of a document. A schema with an id appears once, under that name. */
class Schemas {
  readonly named: Record<string, object> = {};

  /** @param io 'input' for requests, 'output' for responses, which allow no further fields */
  add(schema: z.ZodType, io: 'input' | 'output'): object {
    const standalone = JSON.stringify(z.toJSONSchema(schema, { io }));
    const inDocument = standalone.replaceAll('"#/$defs/', '"#/components/schemas/');
    const { $schema: _draft, $defs = {}, ...rest } = JSON.parse(inDocument);
    Object.assign(this.named, $defs);
    return rest;
  }
}
