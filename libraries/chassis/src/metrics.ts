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

/** From what a cached read takes to a run over a million invoices, in seconds. */
const buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

/** What is the process's and not a service's, of which tests start many in one: event loop, heap, CPU. */
const processMetrics = new Registry();

/** What a service tells Prometheus. */
export class Metrics {
  readonly #registry = createRegistry(Registry.OPENMETRICS_CONTENT_TYPE);
  readonly #requests = new Histogram({
    name: 'http_request_duration_seconds',
    help: 'How long requests took, without those of probes.',
    labelNames: ['method', 'route', 'status'],
    buckets,
    enableExemplars: true,
    registers: [this.#registry],
  });

  constructor(database: Database) {
    // The first that are read, before statements of other measures make use of the pool.
    this.measure('database_connections', 'Open connections to Postgres.', () => database.pool.total);
    this.measure('database_connections_max', 'How many there may be.', () => database.pool.max);
    this.measure('database_connections_idle', 'Those that nothing uses.', () => database.pool.idle);
    this.measure('database_waiting', 'Statements that wait for a connection.', () => database.pool.waiting);
  }

  /**
   * Counts a request.
   * @param route the pattern that it matched, as paths are without number
   * @param seconds from its arrival to the end of its answer
   */
  observeRequest(method: string, route: string, status: string, seconds: number): void {
    const labels = { method, route, status };
    this.#requests.observe({ labels, value: seconds, ...exemplar() });
  }

  /** Makes a counter of what comes in these kinds, all of them at 0 until they come. */
  count<K extends string>(
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

  /** Adds what is read when Prometheus asks; where that fails the metric is absent. */
  measure(name: string, help: string, read: () => number | Promise<number>): void {
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

  /** All of it in Prometheus' text format, or in that of OpenMetrics, which has exemplars. */
  read(type: RegistryContentType = Registry.PROMETHEUS_CONTENT_TYPE): Promise<string> {
    if (processMetrics.getMetricsAsArray().length === 0) collectDefaultMetrics({ register: processMetrics });
    const all = createRegistry(type);
    for (const metric of [this.#registry, processMetrics].flatMap((each) => each.getMetricsAsArray())) {
      // OpenMetrics' counters have another name, which prom-client gives them for good: in a copy that shares the rest.
      all.registerMetric(Object.create(metric));
    }
    return all.metrics();
  }
}

/** Only one of OpenMetrics' type takes metrics with exemplars. */
function createRegistry(type: RegistryContentType): Registry<RegistryContentType> {
  const registry = new Registry<RegistryContentType>();
  registry.setContentType(type);
  return registry;
}

/** The trace of what is being counted, where there is one. */
function exemplar() {
  const ids = idsForExemplar();
  // prom-client's types want the metric's own labels here.
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
  /** The port asked for, or the one it got for 0. */
  port: number;
  close(): Promise<void>;
}

/** Serves `GET /metrics`. @throws {ConfigError} when the port cannot be had */
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
