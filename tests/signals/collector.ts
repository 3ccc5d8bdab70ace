import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { json } from 'node:stream/consumers';

/** A span as sent, reduced to the fields that tests read. */
export interface SentSpan {
  service: string;
  name: string;
  traceId: string;
  spanId: string;
  parentSpanId: string | undefined;
  /** The OTLP number of the kind: 2 is server, 3 is client. */
  kind: number;
  /** The OTLP status code: 2 is an error. */
  status: number | undefined;
  attributes: Record<string, unknown>;
  /** The ids of the linked traces. */
  links: string[];
}

export interface Collector {
  url: string;
  spans: SentSpan[];
  close(): void;
}

/** Receives spans over OTLP/HTTP as JSON. A `silent` collector accepts connections and never answers. */
export async function startCollector({ silent = false } = {}): Promise<Collector> {
  const spans: SentSpan[] = [];
  const server = createServer((request, response) => {
    if (silent) return;
    const receive = async () => {
      spans.push(...((await json(request)) as Body).resourceSpans.flatMap(readSpans));
      response.setHeader('Content-Type', 'application/json').end('{}');
    };
    receive().catch(() => response.writeHead(400).end());
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    spans,
    close() {
      server.close();
      server.closeAllConnections();
    },
  };
}

type Attribute = { key: string; value: Record<string, unknown> };
interface ResourceSpans {
  resource: { attributes: Attribute[] };
  scopeSpans: { spans: Span[] }[];
}
interface Span extends Pick<SentSpan, 'name' | 'traceId' | 'spanId' | 'parentSpanId' | 'kind'> {
  status?: { code?: number };
  attributes: Attribute[];
  links?: { traceId: string }[];
}
interface Body {
  resourceSpans: ResourceSpans[];
}

function readSpans({ resource, scopeSpans }: ResourceSpans): SentSpan[] {
  const service = String(readAttributes(resource.attributes)['service.name']);
  return scopeSpans.flatMap(({ spans }) =>
    spans.map(({ name, traceId, spanId, parentSpanId, kind, status, attributes, links = [] }) => ({
      service,
      name,
      traceId,
      spanId,
      parentSpanId,
      kind,
      status: status?.code,
      attributes: readAttributes(attributes),
      links: links.map((link) => link.traceId),
    })),
  );
}

function readAttributes(attributes: Attribute[]): Record<string, unknown> {
  return Object.fromEntries(attributes.map(({ key, value }) => [key, Object.values(value)[0]]));
}
