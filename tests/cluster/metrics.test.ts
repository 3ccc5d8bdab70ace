import { expect, test } from 'vitest';
import { paying, runScript, services } from './cluster.ts';

const script = `console.log(await (await fetch('http://127.0.0.1:9091/metrics')).text())`;
const read = new Map<string, Promise<string>>();

function metricsOf(service: string): Promise<string> {
  const metrics = read.get(service) ?? runScript(service, script);
  read.set(service, metrics);
  return metrics;
}

test.each(services)('%s serves metrics on a separate port', async (service) => {
  const metrics = await metricsOf(service);
  expect(metrics).toContain('\nnodejs_eventloop_lag_seconds ');
  // Postgres has room for 10 connections per pod: tests/contract/connections.test.ts.
  const connections = /^database_connections_max (\d+)$/m.exec(metrics)?.[1];
  expect(Number(connections)).toBeLessThanOrEqual(10);
});

test.each(paying)('%s has payment metrics', async (service) => {
  const own = { 'invoice-app': 'unpaid_invoices', 'payment-provider': 'charges_total{outcome="charged"}' };
  expect(await metricsOf(service)).toContain(`\n${own[service]} `);
});
