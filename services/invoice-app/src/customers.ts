import type { Database } from '@payloop/kit/database.ts';
import { readPages } from './pages.ts';

/** Who invoices are for. */
export interface Customer {
  id: number;
  currency: string;
}

/** Reads customers in id order, a page at a time. @throws {DatabaseUnavailable} */
export function listCustomers(database: Database): AsyncGenerator<Customer[]> {
  return readPages({}, async (after, limit) => {
    const { rows } = await database.query<Customer>(
      'SELECT id, currency FROM customers WHERE id > $1::bigint ORDER BY id LIMIT $2',
      [after, limit],
    );
    return rows;
  });
}

/** @throws {DatabaseUnavailable} */
export async function findCustomer(database: Database, id: number): Promise<Customer | undefined> {
  const { rows } = await database.query<Customer>(
    'SELECT id, currency FROM customers WHERE id = $1::bigint',
    [id],
  );
  return rows[0];
}
