import { afterEach, describe, expect, test } from 'vitest';
import { kubectl, runScript, paying, until } from '../../cluster.ts';
import { endOfLoad, startLoad, stopLoad } from './load-pod.ts';

/** For as long as the autoscalers may take to notice, in seconds. */
const load = { seconds: 180, workers: 8, pause: 0, only: 'kept' } as const;
/** For the provider more, from one of invoice-app's pods, as nobody else gets to it: payments that it has to refuse. */
const providerLoad = `
  import { readFileSync } from 'node:fs';
  const end = Date.now() + ${load.seconds} * 1000;
  const url = 'http://payment-provider.payment-provider:8082/payments/pay';
  const authorization = 'Bearer ' + readFileSync('/run/secrets/identity/token', 'utf8');
  const body = JSON.stringify(Array.from({ length: 1000 }, (_, n) => ({ id: 'I' + n, currency: 'EUR', idempotencyKey: 'load' + n })));
  const work = async () => {
    while (Date.now() < end) {
      const response = await fetch(url, { method: 'POST', headers: { authorization, connection: 'close' }, body });
      if (response.status !== 200) throw new Error(response.status + ' ' + (await response.text()));
      await response.text();
    }
  };
  await Promise.all(Array.from({ length: 4 }, work));`;

/** How many replicas a service has, and which share of the CPU it asks for they use; undefined until it is measured. */
async function read(service: string): Promise<{ replicas: number; usage: number | undefined }> {
  const text = await kubectl('get', 'hpa', service, `--namespace=${service}`, '--output=json');
  const { status } = JSON.parse(text);
  return {
    replicas: status.currentReplicas,
    usage: status.currentMetrics?.[0]?.resource?.current?.averageUtilization,
  };
}

async function replicasOf(): Promise<number[]> {
  return (await Promise.all(paying.map(read))).map(({ replicas }) => replicas);
}

describe('the autoscalers', () => {
  afterEach(stopLoad, 60_000);

  test('scale out under load, and back when it is over', { timeout: 900_000 }, async () => {
    await until('there are three of each, and they are measured', 300, async () => {
      const all = await Promise.all(paying.map(read));
      return all.every(({ replicas, usage }) => replicas === 3 && usage !== undefined);
    });
    const start = performance.now();
    const seconds = () => Math.round((performance.now() - start) / 1_000);
    await startLoad(load);
    const onProvider = runScript('invoice-app', 'deployment/invoice-app', providerLoad);
    const most = paying.map(() => 3);
    await until('there are more of each', load.seconds, async () => {
      (await replicasOf()).forEach((replicas, n) => (most[n] = Math.max(most[n]!, replicas)));
      return most.every((replicas) => replicas > 3);
    });
    console.log(`${paying.join(', ')}: scaled out to ${most.join(', ')} after ${seconds()} s`);
    const { answered, failures } = await endOfLoad(load.seconds + 60);
    console.log(`load over after ${seconds()} s:`, answered);
    await onProvider;
    expect(failures).toEqual([]);
    const over = seconds();
    await until('there are three of each again', 480, async () => (await replicasOf()).every((n) => n === 3));
    console.log(`back to three of each ${seconds() - over} s after the load`);
  });
});
