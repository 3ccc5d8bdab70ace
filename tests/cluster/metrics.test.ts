import { expect, test } from 'vitest';
import { runScript, services } from './cluster.ts';

test.each(services)('%s has metrics on a port of their own', async (service) => {
  const script = `console.log(await (await fetch('http://127.0.0.1:9091/metrics')).text())`;
  const metrics = await runScript(service, `deployment/${service}`, script);
  const own = { 'invoice-app': 'unpaid_invoices', 'payment-provider': 'charges_total{outcome="charged"}' };
  expect(metrics).toContain(`\n${own[service]} `);
  expect(metrics).toContain('\nnodejs_eventloop_lag_seconds ');
});
