import type { Express } from 'express';
import { z } from 'zod';
import { errorBody } from './http-error.ts';
import { version } from './self.ts';

/** What one method of a path takes and answers. */
export interface Operation {
  summary: string;
  description?: string;
  /** The parameters of the path, of the query, and those headers that are read: each an object of texts. */
  path?: z.ZodObject;
  query?: z.ZodObject;
  headers?: z.ZodObject;
  body?: Body;
  /** By status. A wrong method (405) and an unknown path (404) are described once for all. */
  answers: Answers;
}

export interface Body {
  description: string;
  required: boolean;
  /** By media type; null stands for anything at all. */
  content: Record<string, z.ZodType | null>;
}

export type Answers = Record<number, Answer>;

export interface Answer {
  description: string;
  /** By media type; without it there is no body. */
  content?: Record<string, z.ZodType>;
  /** Those that are not on every answer of HTTP; one that may be absent is optional. */
  headers?: z.ZodObject;
}

/** What a handler in front of others adds to their descriptions. */
export interface Addition {
  headers?: z.ZodObject;
  answers?: Answers;
  /** On each answer. */
  answerHeaders?: z.ZodObject;
  /** A security scheme of OpenAPI, by its name. */
  security?: Record<string, object>;
}

/** An answer in JSON. */
export function json(description: string, schema: z.ZodType, headers?: z.ZodObject): Answer {
  return { description, content: { 'application/json': schema }, ...(headers && { headers }) };
}

/** An answer in text, or in what else `type` says. */
export function text(description: string, schema: z.ZodType = z.string(), type = 'text/plain'): Answer {
  return { description, content: { [type]: schema } };
}

/** An error's answer: `{"error": …}`. */
export function error(description: string, headers?: z.ZodObject): Answer {
  return json(description, errorBody(), headers);
}

/** What any request can end in that asks the database. */
export const databaseErrors = (): Answers => ({
  503: error(
    'The database does not answer, or too many ask at once: then Retry-After says when to ask again.',
    z.object({ 'Retry-After': z.string().optional() }),
  ),
});

/** Methods of a path that are described; GET answers HEAD too. */
export type Method = 'get' | 'post';
type Operations = Partial<Record<Method, Operation>>;
type Addable = (method: Method) => Addition;

interface Described {
  path: string;
  /** Called for the document alone, which few ask for: a start, and so a save, does not wait for it. */
  describe: () => Operations;
  additions: Addable[];
}

const ok = () => text('It does.', z.literal('ok'));

export const describeStarted = () => ({
  get: { summary: 'Whether the process has started', answers: { 200: ok() } },
});

export const describeLive = () => ({ get: { summary: 'Whether the process turns', answers: { 200: ok() } } });

export const describeReady = () => ({
  get: {
    summary: 'Whether the service can answer: its database does, and is up to date',
    answers: { 200: ok(), 503: error('It does not, or is about to end: why.') },
  },
});

export const describeVersion = () => ({
  get: { summary: 'Who answers, and with which code', answers: { 200: json('The process.', version()) } },
});

export const describeDocument = () => ({
  get: {
    summary: 'This document',
    answers: { 200: json('OpenAPI 3.1', z.looseObject({ openapi: z.string() })) },
  },
});

/** Of all that is logged: see `observeRequests` in server.ts. */
export const describeRequestId = (): Addition => ({
  headers: z.object({
    'X-Request-Id': z.string().optional().meta({
      description:
        'Names the request in the logs, of both services; made where it is none of 1 to 64 of A-Za-z0-9_.-',
    }),
  }),
  answerHeaders: z.object({ 'X-Request-Id': z.string() }),
});

/** What each app has been given, in the order in which it is registered. */
const apps = new WeakMap<Express, { routes: Described[]; additions: Addable[] }>();

function descriptionOf(app: Express) {
  const known = apps.get(app) ?? { routes: [], additions: [] };
  apps.set(app, known);
  return known;
}

/** Keeps what a path's methods take and answer. */
export function describeRoute(app: Express, path: string, describe: () => Operations): void {
  const { routes, additions } = descriptionOf(app);
  routes.push({ path, describe, additions: [...additions] });
}

/** Adds this to each route that is described from here on. */
export function describeAll(app: Express, addition: Addable): void {
  descriptionOf(app).additions.push(addition);
}

/** The OpenAPI 3.1 document of all that an app was given. */
export function createDocument(app: Express, title: string): object {
  const paths: Record<string, object> = {};
  const securitySchemes: Record<string, object> = {};
  const document = new Schemas();
  for (const { path, describe, additions } of descriptionOf(app).routes) {
    const operations = Object.entries(describe()).map(([method, operation]) => {
      const added = additions.map((addition) => addition(method as Method));
      for (const { security } of added) Object.assign(securitySchemes, security);
      return [method, toOperation(document, operation, added, operationId(method, path))];
    });
    paths[path.replaceAll(/:(\w+)/g, '{$1}')] = Object.fromEntries(operations);
  }
  // Not on those of a path that comes before what adds them.
  const anywhere = descriptionOf(app).additions.flatMap(
    (addition) => addition('get').answerHeaders?.partial() ?? [],
  );
  const notAllowed = error('No such method at this path.', z.object({ Allow: z.string() }));
  const responses = {
    NotFound: toResponse(document, error('No such path.'), anywhere),
    MethodNotAllowed: toResponse(document, notAllowed, anywhere),
    Misdirected: toResponse(document, error('In development, `Host` names another service.'), anywhere),
  };
  return {
    openapi: '3.1.1',
    info: {
      title,
      version: '1',
      description:
        'GET answers HEAD too, without the body. Any other method of a path is 405 with `Allow`, see the response ' +
        '`MethodNotAllowed`; any other path is 404, see `NotFound`. In development a `Host` that is neither an address ' +
        'nor a name of loopback or of this service is 421, see `Misdirected`.',
    },
    paths,
    components: { schemas: document.named, responses, securitySchemes },
  };
}

/** `GET /rest/v1/invoices/:id` is getRestV1InvoicesId. */
function operationId(method: string, path: string): string {
  const words = path.split(/\W+/).filter((word) => word !== '');
  return method + words.map((word) => word[0]!.toUpperCase() + word.slice(1)).join('');
}

function toOperation(document: Schemas, operation: Operation, added: Addition[], id: string): object {
  const { summary, description, path, query, headers, body, answers } = operation;
  const parameters = [
    ...toParameters(document, 'path', path),
    ...toParameters(document, 'query', query),
    ...[headers, ...added.map((each) => each.headers)].flatMap((each) =>
      toParameters(document, 'header', each),
    ),
  ];
  const all: Answers = Object.assign({}, answers, ...added.map((each) => each.answers));
  all[500] ??= error('A fault of the service, whose log has more.');
  const answerHeaders = added.flatMap((each) => each.answerHeaders ?? []);
  const responses = Object.entries(all).map(([status, answer]) => [
    status,
    toResponse(document, answer, answerHeaders),
  ]);
  const security = added.flatMap((each) => Object.keys(each.security ?? {}));
  return {
    operationId: id,
    summary,
    ...(description !== undefined && { description }),
    ...(parameters.length > 0 && { parameters }),
    ...(body && { requestBody: toRequestBody(document, body) }),
    responses: Object.fromEntries(responses),
    ...(security.length > 0 && { security: security.map((name) => ({ [name]: [] })) }),
  };
}

function toParameters(document: Schemas, place: string, schema: z.ZodObject | undefined): object[] {
  return Object.entries(schema?.shape ?? {}).map(([name, each]) => ({
    name,
    in: place,
    required: isRequired(each as z.ZodType),
    schema: document.add(each as z.ZodType, 'input'),
  }));
}

function toRequestBody(document: Schemas, { description, required, content }: Body): object {
  const types = Object.entries(content).map(([type, schema]) => [
    type,
    schema === null ? {} : { schema: document.add(schema, 'input') },
  ]);
  return { description, required, content: Object.fromEntries(types) };
}

function toResponse(document: Schemas, answer: Answer, more: z.ZodObject[]): object {
  const { description, content = {}, headers } = answer;
  const types = Object.entries(content).map(([type, schema]) => [
    type,
    { schema: document.add(schema, 'output') },
  ]);
  const named = [...(headers ? [headers] : []), ...more].flatMap(({ shape }) => Object.entries(shape));
  const described = named.map(([name, schema]) => [
    name,
    { required: isRequired(schema as z.ZodType), schema: document.add(schema as z.ZodType, 'output') },
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

/** The schemas of a document: one that has an id of its own is there once, under that name. */
class Schemas {
  readonly named: Record<string, object> = {};

  /** @param io whether the schema is of what comes in or of what goes out, where no other field may be */
  add(schema: z.ZodType, io: 'input' | 'output'): object {
    const made = JSON.stringify(z.toJSONSchema(schema, { io }));
    const here = made.replaceAll('"#/$defs/', '"#/components/schemas/');
    const { $schema: _draft, $defs = {}, ...rest } = JSON.parse(here);
    Object.assign(this.named, $defs);
    return rest;
  }
}
