import type { Database } from '@payloop/kit/database.ts';
import { listInvoices, markPaid, type Invoice } from './invoices.ts';
import type { Outcome, Provider } from './provider.ts';

/** How many invoices came to which end in one run. */
export type Tally = Record<'paid' | 'declined' | 'unknown', number>;

/** Requests to the provider at a time. */
const concurrency = 8;
/** After so many invoices in a row without a usable answer the provider is taken to be down, and the run ends. */
const givingUpAfter = 3 * concurrency;
/** The lock that one run at a time holds, over all replicas. */
const runLock = 8081;

/**
 * Pays every unpaid invoice. Of all replicas one runs at a time; another waits, and finds what is left.
 * @returns how many were paid and declined, and for how many the outcome is unknown: those stay unpaid
 * @throws {DatabaseUnavailable} when it went away; each invoice is then in the state it had reached
 */
export async function payInvoices(database: Database, provider: Provider, requestId: string): Promise<Tally> {
  const tally: Tally = { paid: 0, declined: 0, unknown: 0 };
  let unknownInARow = 0;

  const pay = async (invoice: Invoice) => {
    const outcome = await provider.pay(invoice, requestId);
    if (outcome === 'charged') await markPaid(database, invoice.id);
    tally[ends[outcome]] += 1;
    unknownInARow = outcome === 'unknown' ? unknownInARow + 1 : 0;
  };

  await database.exclusively(runLock, async () => {
    for await (const invoices of listInvoices(database, { paid: false })) {
      const queue = invoices.values();
      const worker = async () => {
        for (const invoice of queue) {
          if (unknownInARow >= givingUpAfter) tally.unknown += 1;
          else await pay(invoice);
        }
      };
      await Promise.all(Array.from({ length: concurrency }, worker));
    }
  });
  return tally;
}

const ends = { charged: 'paid', declined: 'declined', unknown: 'unknown' } as const satisfies Record<
  Outcome,
  keyof Tally
>;
