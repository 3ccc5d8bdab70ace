import { Validator } from '@seriousme/openapi-schema-validator';
import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js';
import addFormats from 'ajv-formats';

/** A request of a test table. */
export interface RecordedRequest {
  method: string;
  path: string;
  headers?: Record<string, string>;
  body?: string;
}

export interface RecordedResponse {
  status: number;
  headers: Headers;
  /** Not parsed. */
  body: string;
}

export async function send(
  url: string,
  { method, path, headers = {}, body }: RecordedRequest,
): Promise<RecordedResponse> {
  // As bytes: fetch adds a Content-Type to text.
  const bytes = body === undefined ? null : new TextEncoder().encode(body);
  const response = await fetch(url + path, { method, headers, body: bytes });
  const { status, headers: received } = response;
  // An event stream never ends, so its first chunk is enough.
  const isStream = received.get('Content-Type')?.startsWith('text/event-stream');
  const text = isStream ? await readFirstChunk(response) : await response.text();
  return { status, headers: received, body: text };
}

async function readFirstChunk(response: Response): Promise<string> {
  const reader = response.body!.getReader();
  const { value } = await reader.read();
  await reader.cancel();
  return new TextDecoder().decode(value);
}

/** Response headers of HTTP itself, which the document need not describe. */
const standardHeaders = [
  'connection',
  'content-length',
  'content-type',
  'date',
  'keep-alive',
  'transfer-encoding',
];

/** The OpenAPI document that a service serves at `/openapi.json`. Checks requests and responses against it. */
export class OpenApiDocument {
  readonly json: any;
  readonly #ajv = new Ajv2020({ strict: false, allErrors: true });

  /** @throws {Error} if the document is not OpenAPI 3.1 */
  static async fetch(url: string): Promise<OpenApiDocument> {
    const json: any = await (await fetch(`${url}/openapi.json`)).json();
    const { valid, errors } = await new Validator().validate(structuredClone(json));
    if (!valid) throw new Error(`not OpenAPI: ${JSON.stringify(errors)}`);
    return new OpenApiDocument(json);
  }

  constructor(json: any) {
    this.json = json;
    addFormats.default(this.#ajv);
    this.#ajv.addSchema(json, 'document');
  }

  /**
   * Compares a request and its response with the document. Finds undescribed parts, parts that differ from their
   * description, invalid requests that were accepted, and valid requests that got 400.
   * @returns a line for each
   */
  findViolations(request: RecordedRequest, response: RecordedResponse): string[] {
    const url = new URL(request.path, 'http://service');
    const found = this.#findPath(url.pathname);
    if (found === undefined) return this.#checkResponse('/components/responses/NotFound', 404, response);
    const method = request.method === 'HEAD' ? 'get' : request.method.toLowerCase();
    const operation = found.item[method];
    if (operation === undefined) {
      return [
        ...this.#checkResponse('/components/responses/MethodNotAllowed', 405, response),
        ...this.#checkAllow(found.item, response),
      ];
    }
    const at = `/paths/${escape(found.template)}/${method}`;
    if (operation.responses[response.status] === undefined) {
      return [`${request.method} ${found.template} does not describe status ${response.status}`];
    }
    const invalid = this.#checkRequest(at, operation, request, url, found.values);
    return [
      ...this.#checkResponse(
        `${at}/responses/${response.status}`,
        response.status,
        response,
        request.method === 'HEAD',
      ),
      ...(invalid.length > 0 && response.status < 400
        ? invalid.map((line) => `accepted although invalid: ${line}`)
        : []),
      ...(invalid.length === 0 && response.status === 400
        ? ['400, but the document allows this request']
        : []),
    ];
  }

  /** Lists the described responses, such as `invoice-app GET /invoices 200`. */
  responses(): string[] {
    const { info, paths } = this.json;
    return Object.entries<any>(paths).flatMap(([template, item]) =>
      Object.entries<any>(item).flatMap(([method, { responses }]) =>
        Object.keys(responses).map((status) => `${info.title} ${method.toUpperCase()} ${template} ${status}`),
      ),
    );
  }

  /** Names a received response in the same form. */
  nameOf({ method, path }: RecordedRequest, { status }: RecordedResponse): string {
    const { template } = this.#findPath(new URL(path, 'http://service').pathname) ?? {};
    return `${this.json.info.title} ${method.replace('HEAD', 'GET')} ${template} ${status}`;
  }

  #findPath(pathname: string) {
    // OpenAPI matches a path without parameters before one with parameters.
    const templates = Object.keys(this.json.paths).toSorted(
      (a, b) => Number(a.includes('{')) - Number(b.includes('{')),
    );
    for (const template of templates) {
      const names = [...template.matchAll(/\{(\w+)\}/g)].map(([, name]) => name!);
      const match = new RegExp(`^${template.replaceAll(/\{\w+\}/g, '([^/]+)')}$`).exec(pathname);
      if (match === null) continue;
      const values = Object.fromEntries(names.map((name, n) => [name, match[n + 1]!]));
      return { template, item: this.json.paths[template], values };
    }
    return undefined;
  }

  #checkAllow(item: Record<string, unknown>, { headers }: RecordedResponse): string[] {
    const allowed = Object.keys(item).flatMap((method) =>
      method === 'get' ? ['GET', 'HEAD'] : [method.toUpperCase()],
    );
    const given = headers.get('Allow')?.split(', ') ?? [];
    return allowed.toSorted().join() === given.toSorted().join()
      ? []
      : [`allows ${given.join()}, not ${allowed.join()}`];
  }

  #checkRequest(
    at: string,
    operation: any,
    request: RecordedRequest,
    url: URL,
    values: Record<string, string>,
  ): string[] {
    const headers = new Headers(request.headers);
    const parameters: any[] = operation.parameters ?? [];
    const invalid = parameters.flatMap(({ name, in: place, required, schema }, n) => {
      const given = { path: values[name], query: url.searchParams.get(name), header: headers.get(name) }[
        place as 'path' | 'query' | 'header'
      ];
      if (given === undefined || given === null) return required ? [`${name} is missing`] : [];
      const isNumber = schema.type === 'integer' && given.trim() !== '';
      return this.#schemaErrors(`${at}/parameters/${n}/schema`, isNumber ? Number(given) : given);
    });
    const { requestBody } = operation;
    const type = headers.get('Content-Type')?.split(';')[0] ?? '';
    const types = Object.keys(requestBody?.content ?? {});
    const described = [type, '*/*'].find((each) => types.includes(each));
    if (requestBody === undefined) return request.body ? [...invalid, 'a body'] : invalid;
    if (request.body === undefined) return requestBody.required ? [...invalid, 'no body'] : invalid;
    if (described === undefined) return [...invalid, `a body of the type ${type}`];
    if (requestBody.content[described].schema === undefined) return invalid;
    const json = parse(request.body);
    if (json === undefined) return [...invalid, 'not JSON'];
    return [
      ...invalid,
      ...this.#schemaErrors(`${at}/requestBody/content/${escape(described)}/schema`, json.value),
    ];
  }

  #checkResponse(
    at: string,
    status: number,
    { status: given, headers, body }: RecordedResponse,
    isHead = false,
  ): string[] {
    if (given !== status) return [`answered ${given}, not ${status}`];
    const response = this.#lookUp(at);
    const violations: string[] = [];
    const described: Record<string, any> = response.headers ?? {};
    for (const [name, { required }] of Object.entries(described)) {
      const value = headers.get(name);
      if (value !== null)
        violations.push(...this.#schemaErrors(`${at}/headers/${escape(name)}/schema`, value));
      else if (required) violations.push(`${status} without ${name}`);
    }
    const names = new Set([...standardHeaders, ...Object.keys(described).map((name) => name.toLowerCase())]);
    for (const name of headers.keys()) {
      if (!names.has(name)) violations.push(`the header ${name} is not described`);
    }
    if (response.content === undefined)
      return body === '' ? violations : [...violations, 'the body is not described'];
    const [type = ''] = headers.get('Content-Type')?.split(';') ?? [];
    if (response.content[type] === undefined)
      return [...violations, `the content type '${type}' is not described`];
    if (isHead) return violations;
    const content = type === 'application/json' ? parse(body) : { value: body };
    if (content === undefined) return [...violations, 'not JSON'];
    return [...violations, ...this.#schemaErrors(`${at}/content/${escape(type)}/schema`, content.value)];
  }

  #schemaErrors(at: string, value: unknown): string[] {
    const validate = this.#ajv.getSchema(`document#${at}`) as ValidateFunction;
    if (validate(value)) return [];
    return (validate.errors ?? []).map(
      ({ instancePath, message, params }) => `${at}: ${instancePath} ${message} ${JSON.stringify(params)}`,
    );
  }

  #lookUp(at: string): any {
    return at
      .split('/')
      .slice(1)
      .reduce((node, key) => node[key.replaceAll('~1', '/').replaceAll('~0', '~')], this.json);
  }
}

/** Escapes a key for a JSON pointer (RFC 6901). */
function escape(key: string): string {
  return key.replaceAll('~', '~0').replaceAll('/', '~1');
}

function parse(text: string): { value: unknown } | undefined {
  try {
    return { value: JSON.parse(text) };
  } catch {
    return undefined;
  }
}
