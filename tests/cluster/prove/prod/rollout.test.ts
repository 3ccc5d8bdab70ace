import { setTimeout } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { isReady, kubectl, kubectlWith, pods, paying, sql, until, type Pod } from '../../cluster.ts';
import { endOfLoad, isLoadRunning, startLoad, stopLoad } from './load-pod.ts';

type Service = (typeof paying)[number];

/** The duration of the load, in seconds. All actions of a test must fit into it. */
const load = { rollout: 200, eviction: 80, drain: 120 };

async function restart(restarted: readonly Service[]): Promise<void> {
  await Promise.all(
    restarted.map(async (service) => {
      const before = await pods(service);
      const target = [`deployment/${service}`, `--namespace=${service}`];
      await kubectl('rollout', 'restart', ...target);
      await kubectl('rollout', 'status', ...target, '--timeout=120s');
      // Terminating pods serve for a while longer, and the test covers that too.
      await until('the old pods are gone', 60, async () => {
        const text = await kubectl('get', 'pods', `--namespace=${service}`, '--output=name');
        return before.every(({ metadata }) => !text.includes(metadata.name));
      });
    }),
  );
}

/** Adds invoices continuously, so that each payment run has some to pay. */
function startInvoices(): { stop(): Promise<void> } {
  const stopping = new AbortController();
  const loop = async () => {
    while (!stopping.signal.aborted) {
      const values = `SELECT (SELECT max(id) FROM invoices) + n, 1, 1000 + n, 'EUR' FROM generate_series(1, 20) AS n`;
      await sql('invoice_app', `INSERT INTO invoices (id, customer_id, amount, currency) ${values}`);
      await setTimeout(1_000);
    }
  };
  const done = loop();
  return {
    stop() {
      stopping.abort();
      return done;
    },
  };
}

/** Runs an action under load. @returns the failed requests */
async function underLoad(seconds: number, act: () => Promise<void>, node?: string): Promise<string[]> {
  const invoices = startInvoices();
  try {
    await startLoad({ seconds, ...(node && { node }) });
    await setTimeout(3_000);
    await act();
    if (!(await isLoadRunning())) throw new Error('the load ended before the action did');
    const { answered, failures } = await endOfLoad(seconds + 60);
    console.log(`${seconds} s of load, answered:`, answered);
    for (const kind of ['kept', 'fresh', 'version', 'pay']) {
      if ((answered[kind] ?? 0) < seconds / 2) failures.push(`${kind}: only ${answered[kind]} answers`);
    }
    return failures;
  } finally {
    await invoices.stop();
  }
}

async function evict(service: Service, pod: Pod): Promise<string> {
  const metadata = { name: pod.metadata.name, namespace: service };
  const path = `/api/v1/namespaces/${service}/pods/${metadata.name}/eviction`;
  const eviction = { apiVersion: 'policy/v1', kind: 'Eviction', metadata };
  return await kubectlWith(eviction, 'create', `--raw=${path}`, '--filename=-');
}

function waitForThree(service: Service): Promise<boolean> {
  return until(`${service} has three ready pods`, 90, async () => {
    return (await pods(service)).filter(isReady).length >= 3;
  });
}

async function nodeOf(namespace: string, pod: string): Promise<string> {
  return await kubectl('get', 'pod', pod, `--namespace=${namespace}`, '--output=jsonpath={.spec.nodeName}');
}

const nodes = (await kubectl('get', 'nodes', '--output=jsonpath={.items[*].metadata.name}')).split(' ');

describe('under steady load through the Service no request fails', () => {
  afterEach(stopLoad, 60_000);

  test('while each Deployment is restarted, and then both', { timeout: 400_000 }, async () => {
    const failures = await underLoad(load.rollout, async () => {
      await restart(['invoice-app']);
      await restart(['payment-provider']);
      await restart(paying);
    });
    expect(failures).toEqual([]);
  });

  test('while a pod of each service is evicted, but not a second one', { timeout: 300_000 }, async () => {
    const failures = await underLoad(load.eviction, async () => {
      for (const service of paying) {
        await waitForThree(service);
        const [first, second] = await pods(service);
        await evict(service, first!);
        await expect(evict(service, second!)).rejects.toThrow(/disruption budget/);
        await waitForThree(service);
      }
    });
    expect(failures).toEqual([]);
  });

  // scripts/ci.sh creates a cluster with two nodes, but a cluster that existed before may have only one.
  test.runIf(nodes.length > 1)('while a node is drained', { timeout: 400_000 }, async () => {
    const staying = await nodeOf('postgres', 'postgres-0');
    const drained = nodes.find((node) => node !== staying)!;
    try {
      await kubectl('cordon', drained);
      await spreadNames(drained);
      const failures = await underLoad(
        load.drain,
        async () => {
          await kubectl('drain', drained, '--ignore-daemonsets', '--delete-emptydir-data', '--timeout=110s');
          const left = await kubectl(
            'get',
            'pods',
            '--all-namespaces',
            '--selector=app.kubernetes.io/component=service',
            `--field-selector=spec.nodeName=${drained}`,
            '--output=name',
          );
          expect(left).toBe('');
        },
        staying,
      );
      expect(failures).toEqual([]);
    } finally {
      await kubectl('uncordon', drained);
    }
  });
});

/** Moves a name server to the other node if this node has them all, because kind gives them no disruption budget. */
async function spreadNames(drained: string): Promise<void> {
  const selector = ['--namespace=kube-system', '--selector=k8s-app=kube-dns'];
  const read = async () =>
    JSON.parse(await kubectl('get', 'pods', ...selector, '--output=json')).items as (Pod & {
      spec: { nodeName: string };
    })[];
  const found = await read();
  if (found.some(({ spec }) => spec.nodeName !== drained)) return;
  await kubectl('delete', 'pod', found[0]!.metadata.name, '--namespace=kube-system');
  await until('a name server is on the other node', 60, async () =>
    (await read()).some((pod) => pod.spec.nodeName !== drained && isReady(pod)),
  );
}
