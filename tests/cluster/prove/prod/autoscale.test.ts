import { afterEach, describe, expect, test } from 'vitest';
import { kubectl, runScript, paying, until } from '../../cluster.ts';
import { endOfLoad, startLoad, stopLoad } from './load-pod.ts';

/** The load lasts as long as the autoscalers may take to react, in seconds. */
const load = { seconds: 180, workers: 8, pause: 0, only: 'kept' } as const;
/** Adds load on the provider: payments that it has to refuse. Runs in a pod of invoice-app, as no other may call it. */
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

/** Reads the replicas of a service and their share of the requested CPU, in percent; undefined until measured. */
async function readScale(service: string): Promise<{ replicas: number; usage: number | undefined }> {
  const text = await kubectl('get', 'hpa', service, `--namespace=${service}`, '--output=json');
  const { status } = JSON.parse(text);
  return {
    replicas: status.currentReplicas,
    usage: status.currentMetrics?.[0]?.resource?.current?.averageUtilization,
  };
}

async function readReplicas(): Promise<number[]> {
  return (await Promise.all(paying.map(readScale))).map(({ replicas }) => replicas);
}

describe('the autoscalers', () => {
  afterEach(stopLoad, 60_000);

  test('scale out under load and back in after it', { timeout: 900_000 }, async () => {
    await until('each service has three replicas and a measured CPU usage', 300, async () => {
      const all = await Promise.all(paying.map(readScale));
      return all.every(({ replicas, usage }) => replicas === 3 && usage !== undefined);
    });
    const start = performance.now();
    const seconds = () => Math.round((performance.now() - start) / 1_000);
    await startLoad(load);
    const onProvider = runScript('invoice-app', providerLoad);
    const most = paying.map(() => 3);
    await until('each service has more than three replicas', load.seconds, async () => {
      (await readReplicas()).forEach((replicas, n) => (most[n] = Math.max(most[n]!, replicas)));
      return most.every((replicas) => replicas > 3);
    });
    console.log(`${paying.join(', ')}: scaled out to ${most.join(', ')} after ${seconds()} s`);
    const { answered, failures } = await endOfLoad(load.seconds + 60);
    console.log(`load over after ${seconds()} s:`, answered);
    await onProvider;
    expect(failures).toEqual([]);
    const over = seconds();
    await until('each service has three replicas again', 480, async () =>
      (await readReplicas()).every((n) => n === 3),
    );
    console.log(`back to three of each ${seconds() - over} s after the load`);
  });
});
