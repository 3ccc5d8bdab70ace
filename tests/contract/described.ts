import { Validator } from '@seriousme/openapi-schema-validator';
import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js';
import addFormats from 'ajv-formats';

/** A request as it is recorded in a table. */
export interface Asked {
  method: string;
  path: string;
  headers?: Record<string, string>;
  body?: string;
}

export interface Answered {
  status: number;
  headers: Headers;
  /** As it came. */
  body: string;
}

/** Sends a request as it is recorded. */
export async function send(url: string, { method, path, headers = {}, body }: Asked): Promise<Answered> {
  // As bytes: for text fetch would make up a type.
  const bytes = body === undefined ? null : new TextEncoder().encode(body);
  const response = await fetch(url + path, { method, headers, body: bytes });
  const { status, headers: answered } = response;
  // A stream of events never ends: of it the first part is enough.
  const isStream = answered.get('Content-Type')?.startsWith('text/event-stream');
  const text = isStream ? await readFirstPart(response) : await response.text();
  return { status, headers: answered, body: text };
}

async function readFirstPart(response: Response): Promise<string> {
  const reader = response.body!.getReader();
  const { value } = await reader.read();
  await reader.cancel();
  return new TextDecoder().decode(value);
}

/** Headers that HTTP itself has on answers. */
const ofHttp = ['connection', 'content-length', 'content-type', 'date', 'keep-alive', 'transfer-encoding'];

/** What a service says of itself at `/openapi.json`, to hold requests and answers against. */
export class Description {
  readonly document: any;
  readonly #ajv = new Ajv2020({ strict: false, allErrors: true });

  /** @throws where the document is not OpenAPI 3.1 */
  static async of(url: string): Promise<Description> {
    const document: any = await (await fetch(`${url}/openapi.json`)).json();
    const { valid, errors } = await new Validator().validate(structuredClone(document));
    if (!valid) throw new Error(`not OpenAPI: ${JSON.stringify(errors)}`);
    return new Description(document);
  }

  constructor(document: any) {
    this.document = document;
    addFormats.default(this.#ajv);
    this.#ajv.addSchema(document, 'document');
  }

  /**
   * Holds a request and its answer against the document: what is not described, what is described and is not so,
   * and a request that is wrong by the document where the answer does not say so, or the other way round.
   * @returns a line for each
   */
  complaints(asked: Asked, answered: Answered): string[] {
    const url = new URL(asked.path, 'http://service');
    const found = this.#findPath(url.pathname);
    if (found === undefined) return this.#answer('/components/responses/NotFound', 404, answered);
    const method = asked.method === 'HEAD' ? 'get' : asked.method.toLowerCase();
    const operation = found.item[method];
    if (operation === undefined) {
      return [
        ...this.#answer('/components/responses/MethodNotAllowed', 405, answered),
        ...this.#wrongAllow(found.item, answered),
      ];
    }
    const at = `/paths/${escape(found.template)}/${method}`;
    if (operation.responses[answered.status] === undefined) {
      return [`${asked.method} ${found.template} is not described to answer ${answered.status}`];
    }
    const wrong = this.#wrongRequest(at, operation, asked, url, found.values);
    return [
      ...this.#answer(
        `${at}/responses/${answered.status}`,
        answered.status,
        answered,
        asked.method === 'HEAD',
      ),
      ...(wrong.length > 0 && answered.status < 400
        ? wrong.map((line) => `answered all the same: ${line}`)
        : []),
      ...(wrong.length === 0 && answered.status === 400
        ? ['400, where the document finds nothing wrong']
        : []),
    ];
  }

  /** Each answer that is described, such as `invoice-app GET /invoices 200`. */
  answers(): string[] {
    const { info, paths } = this.document;
    return Object.entries<any>(paths).flatMap(([template, item]) =>
      Object.entries<any>(item).flatMap(([method, { responses }]) =>
        Object.keys(responses).map((status) => `${info.title} ${method.toUpperCase()} ${template} ${status}`),
      ),
    );
  }

  /** The same of one that came. */
  nameOf({ method, path }: Asked, { status }: Answered): string {
    const { template } = this.#findPath(new URL(path, 'http://service').pathname) ?? {};
    return `${this.document.info.title} ${method.replace('HEAD', 'GET')} ${template} ${status}`;
  }

  #findPath(pathname: string) {
    // A path without parameters comes before one that has some.
    const templates = Object.keys(this.document.paths).toSorted(
      (a, b) => Number(a.includes('{')) - Number(b.includes('{')),
    );
    for (const template of templates) {
      const names = [...template.matchAll(/\{(\w+)\}/g)].map(([, name]) => name!);
      const match = new RegExp(`^${template.replaceAll(/\{\w+\}/g, '([^/]+)')}$`).exec(pathname);
      if (match === null) continue;
      const values = Object.fromEntries(names.map((name, n) => [name, match[n + 1]!]));
      return { template, item: this.document.paths[template], values };
    }
    return undefined;
  }

  #wrongAllow(item: Record<string, unknown>, { headers }: Answered): string[] {
    const allowed = Object.keys(item).flatMap((method) =>
      method === 'get' ? ['GET', 'HEAD'] : [method.toUpperCase()],
    );
    const said = headers.get('Allow')?.split(', ') ?? [];
    return allowed.toSorted().join() === said.toSorted().join()
      ? []
      : [`allows ${said.join()}, not ${allowed.join()}`];
  }

  #wrongRequest(
    at: string,
    operation: any,
    asked: Asked,
    url: URL,
    values: Record<string, string>,
  ): string[] {
    const headers = new Headers(asked.headers);
    const parameters: any[] = operation.parameters ?? [];
    const wrong = parameters.flatMap(({ name, in: place, required, schema }, n) => {
      const given = { path: values[name], query: url.searchParams.get(name), header: headers.get(name) }[
        place as 'path' | 'query' | 'header'
      ];
      if (given === undefined || given === null) return required ? [`${name} is missing`] : [];
      const isNumber = schema.type === 'integer' && given.trim() !== '';
      return this.#violations(`${at}/parameters/${n}/schema`, isNumber ? Number(given) : given);
    });
    const { requestBody } = operation;
    const type = headers.get('Content-Type')?.split(';')[0] ?? '';
    const types = Object.keys(requestBody?.content ?? {});
    const described = [type, '*/*'].find((each) => types.includes(each));
    if (requestBody === undefined) return asked.body ? [...wrong, 'a body'] : wrong;
    if (asked.body === undefined) return requestBody.required ? [...wrong, 'no body'] : wrong;
    if (described === undefined) return [...wrong, `a body of the type ${type}`];
    if (requestBody.content[described].schema === undefined) return wrong;
    const json = parse(asked.body);
    if (json === undefined) return [...wrong, 'no JSON'];
    return [
      ...wrong,
      ...this.#violations(`${at}/requestBody/content/${escape(described)}/schema`, json.value),
    ];
  }

  #answer(at: string, status: number, { status: given, headers, body }: Answered, isHead = false): string[] {
    if (given !== status) return [`answered ${given}, not ${status}`];
    const response = this.#lookUp(at);
    const complaints: string[] = [];
    const described: Record<string, any> = response.headers ?? {};
    for (const [name, { required }] of Object.entries(described)) {
      const value = headers.get(name);
      if (value !== null) complaints.push(...this.#violations(`${at}/headers/${escape(name)}/schema`, value));
      else if (required) complaints.push(`${status} without ${name}`);
    }
    const names = new Set([...ofHttp, ...Object.keys(described).map((name) => name.toLowerCase())]);
    for (const name of headers.keys()) {
      if (!names.has(name)) complaints.push(`the header ${name} is not described`);
    }
    if (response.content === undefined)
      return body === '' ? complaints : [...complaints, 'a body is not described'];
    const [type = ''] = headers.get('Content-Type')?.split(';') ?? [];
    if (response.content[type] === undefined)
      return [...complaints, `the content type '${type}' is not described`];
    if (isHead) return complaints;
    const content = type === 'application/json' ? parse(body) : { value: body };
    if (content === undefined) return [...complaints, 'no JSON'];
    return [...complaints, ...this.#violations(`${at}/content/${escape(type)}/schema`, content.value)];
  }

  #violations(at: string, value: unknown): string[] {
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
      .reduce((node, key) => node[key.replaceAll('~1', '/').replaceAll('~0', '~')], this.document);
  }
}

/** A key as a part of a JSON pointer. */
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
