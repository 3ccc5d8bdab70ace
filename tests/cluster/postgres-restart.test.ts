import { expect, test } from 'vitest';
import { isReady, kubectl, pods, restarts, paying, sql, until, url, type Pod } from './cluster.ts';
import { count, trickle } from './trickle.ts';

/** Invoices per insert. The inserts repeat, so that some invoices are unpaid when Postgres stops. */
const invoices = 100;

interface Invoice {
  InvoiceId: string;
  IsPaid: boolean;
}

/** @throws {Error} if the request fails */
async function readInvoices(): Promise<Invoice[]> {
  const response = await fetch(`${url}/invoices`, { signal: AbortSignal.timeout(5_000) });
  if (response.status !== 200) throw new Error(`GET /invoices answered ${response.status}`);
  return (await response.json()) as Invoice[];
}

async function pay(): Promise<number> {
  const response = await fetch(`${url}/invoices/pay`, {
    method: 'POST',
    signal: AbortSignal.timeout(30_000),
  });
  await response.text();
  return response.status;
}

/** Adds invoices by SQL, because no request can. */
async function addInvoices(): Promise<number> {
  await sql(
    'invoice_app',
    `INSERT INTO invoices (id, customer_id, amount, currency)
     SELECT (SELECT coalesce(max(id), 0) FROM invoices) + n, 1, 1000 + n, 'EUR'
     FROM generate_series(1, ${invoices}) AS n`,
  );
  return invoices;
}

test('both services recover and paid invoices stay paid when the Postgres pod is deleted under load', async () => {
  const before = await Promise.all(paying.map((service) => pods(service)));
  const [postgres] = await pods('postgres');
  const arrivals = trickle(addInvoices, 100);
  const seenPaid = new Set<string>();
  const lost = new Set<string>();
  const reads = trickle(async () => {
    for (const { InvoiceId, IsPaid } of await readInvoices()) {
      if (IsPaid) seenPaid.add(InvoiceId);
      // Checked in every read: the next pay request would pay the invoice again and hide the loss.
      else if (seenPaid.has(InvoiceId)) lost.add(InvoiceId);
    }
    return 200;
  }, 50);
  await until('the invoices are read', 10, () => seenPaid.size > 0);
  const old = seenPaid.size;
  const pays = trickle(pay, 100);
  await until('the first of them are paid', 10, () => seenPaid.size > old + 100);
  const paidBefore = seenPaid.size;
  await kubectl('delete', 'pod', 'postgres-0', '--namespace=postgres', '--wait=false');
  await until('a new Postgres pod is ready', 60, async () => {
    const [pod] = await pods('postgres');
    return pod !== undefined && pod.metadata.uid !== postgres?.metadata.uid && isReady(pod);
  });
  await until('both services are ready again', 20, async () =>
    (await Promise.all(paying.map((service) => pods(service)))).flat().every(isReady),
  );
  const recovered = seenPaid.size;
  await until('more invoices are paid', 30, () => seenPaid.size > recovered);
  await until('a pay request is answered with 200', 30, async () => (await pay()) === 200);
  await arrivals.stop();
  await until('the last invoices are paid', 10, async () =>
    (await readInvoices()).every(({ IsPaid }) => IsPaid),
  );
  const answers = { pay: count(await pays.stop()), read: count(await reads.stop()) };
  process.stdout.write(
    `# ${paidBefore} paid when Postgres was deleted, ${recovered} when ready; answers: ${JSON.stringify(answers)}\n`,
  );

  expect(lost).toEqual(new Set());
  expect((await readInvoices()).filter(({ IsPaid }) => !IsPaid)).toEqual([]);
  // Some requests must fail, otherwise the outage had no effect.
  expect(Object.keys(answers.pay).length).toBeGreaterThan(1);
  expect(restartsByPod(await Promise.all(paying.map((service) => pods(service))))).toEqual(
    restartsByPod(before),
  );
});

function restartsByPod(found: Pod[][]): Record<string, number> {
  return Object.fromEntries(found.flat().map((pod) => [pod.metadata.name, restarts(pod)]));
}
