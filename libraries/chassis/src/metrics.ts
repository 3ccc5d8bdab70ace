import { createServer } from 'node:http';
import {
  collectDefaultMetrics,
  Counter,
  Gauge,
  Histogram,
  Registry,
  type RegistryContentType,
} from 'prom-client';
import type { Database } from './database.ts';
import type { HostRule } from './guard.ts';
import { listen } from './listen.ts';
import type { Log } from './log.ts';
import { idsForExemplar } from './tracing.ts';

/** The buckets of request durations, in seconds: from a cached read to a payment run of a million invoices. */
const buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

/** Process-wide metrics: event loop, heap, CPU. Kept apart, because tests run several services in one process. */
const processMetrics = new Registry();

/** The metrics of a service. */
export class Metrics {
  /** Of the OpenMetrics type: in any other registry, prom-client refuses to construct metrics with exemplars. */
  readonly #registry = createRegistry(Registry.OPENMETRICS_CONTENT_TYPE);
  readonly #requests = new Histogram({
    name: 'http_request_duration_seconds',
    help: 'Duration of requests in seconds, except probes and streams.',
    labelNames: ['method', 'route', 'status'],
    buckets,
    enableExemplars: true,
    registers: [this.#registry],
  });

  constructor(database: Database) {
    // Registered first, so that they are read before the queries of other gauges use the pool.
    this.createGauge('database_connections', 'Open connections to Postgres.', () => database.pool.total);
    this.createGauge(
      'database_connections_max',
      'Maximum number of connections to Postgres.',
      () => database.pool.max,
    );
    this.createGauge('database_connections_idle', 'Idle connections to Postgres.', () => database.pool.idle);
    this.createGauge('database_waiting', 'Statements waiting for a connection.', () => database.pool.waiting);
  }

  /**
   * Records the duration of a request.
   * @param route the pattern that matched, because the number of paths is unbounded
   * @param seconds from the request's arrival to the end of the response
   */
  observeRequest(method: string, route: string, status: string, seconds: number): void {
    const labels = { method, route, status };
    this.#requests.observe({ labels, value: seconds, ...exemplar() });
  }

  /**
   * Creates a counter with one series per kind. Each series starts at 0.
   * @returns a function that increments the series of a kind
   */
  createCounter<K extends string>(
    name: string,
    help: string,
    label: string,
    kinds: readonly K[],
  ): (kind: K, times?: number) => void {
    const registers = [this.#registry];
    const counter = new Counter({ name, help, labelNames: [label], registers, enableExemplars: true });
    for (const kind of kinds) counter.inc({ labels: { [label]: kind }, value: 0 });
    return (kind, times = 1) => counter.inc({ labels: { [label]: kind }, value: times, ...exemplar() });
  }

  /** Creates a gauge that is read at each scrape. If reading fails, the metric is absent. */
  createGauge(name: string, help: string, read: () => number | Promise<number>): void {
    const gauge = new Gauge({
      name,
      help,
      registers: [this.#registry],
      collect: async () => {
        try {
          gauge.set(await read());
        } catch {
          gauge.remove();
        }
      },
    });
  }

  /** Returns all metrics in the text format of Prometheus, or in that of OpenMetrics with exemplars. */
  read(type: RegistryContentType = Registry.PROMETHEUS_CONTENT_TYPE): Promise<string> {
    if (processMetrics.getMetricsAsArray().length === 0) collectDefaultMetrics({ register: processMetrics });
    const all = createRegistry(type);
    for (const metric of [this.#registry, processMetrics].flatMap((each) => each.getMetricsAsArray())) {
      // Before it writes OpenMetrics, prom-client changes the name of each counter and does not change it back. A
      // derived object takes that name and leaves the original alone. Both share the values.
      all.registerMetric(Object.create(metric));
    }
    return all.metrics();
  }
}

/** Creates an empty registry that writes its metrics in the given format. */
function createRegistry(type: RegistryContentType): Registry<RegistryContentType> {
  const registry = new Registry<RegistryContentType>();
  registry.setContentType(type);
  return registry;
}

/** Returns the option that makes prom-client store the active span's ids; undefined if no sampled span is active. */
function exemplar() {
  const ids = idsForExemplar();
  // The types of prom-client require the metric's own labels here.
  return ids && { exemplarLabels: ids as object };
}

export interface MetricsServerOptions {
  host: string | undefined;
  port: number;
  metrics: Metrics;
  isServed: HostRule;
  log: Log;
}

export interface MetricsServer {
  /** The configured port; if that is 0, the port that the system assigned. */
  port: number;
  close(): Promise<void>;
}

/** Serves `GET /metrics`. @throws {ConfigError} when the server cannot listen on the port */
export async function serveMetrics({
  host,
  port,
  metrics,
  isServed,
  log,
}: MetricsServerOptions): Promise<MetricsServer> {
  const server = createServer((request, response) => {
    if (!isServed(request.headers.host)) {
      response.writeHead(421).end();
      return;
    }
    if (request.url !== '/metrics') {
      response.writeHead(404).end();
      return;
    }
    const wantsOpenMetrics = request.headers.accept?.includes('application/openmetrics-text') ?? false;
    const type = wantsOpenMetrics ? Registry.OPENMETRICS_CONTENT_TYPE : Registry.PROMETHEUS_CONTENT_TYPE;
    metrics.read(type).then(
      (text) => response.setHeader('Content-Type', type).end(text),
      (err: unknown) => {
        log.error({ err }, 'the metrics could not be read');
        response.writeHead(500).end();
      },
    );
  });
  return {
    port: await listen(server, 'METRICS_PORT', host, port),
    async close() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    },
  };
}
