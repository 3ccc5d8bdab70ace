import { Client } from 'pg';
import { expect, test } from 'vitest';
import { createDatabase } from './database.ts';

test('a test database has no tables, belongs to its own role, and is removed by drop', async () => {
  const [one, other] = await Promise.all([createDatabase(), createDatabase()]);
  const client = new Client({ connectionString: one.url });
  client.on('error', () => undefined);
  await client.connect();
  const tables = await client.query(`SELECT tablename FROM pg_tables WHERE schemaname = 'public'`);
  expect(tables.rows).toEqual([]);
  await client.query('CREATE TABLE kept (id int)');
  const { rows } = await client.query(
    'SELECT current_user = current_database() AS own, rolsuper FROM pg_roles WHERE rolname = current_user',
  );
  expect(rows).toEqual([{ own: true, rolsuper: false }]);

  await Promise.all([one.drop(), other.drop()]);
  await expect(new Client({ connectionString: one.url }).connect()).rejects.toThrow(
    /does not exist|password/,
  );
});
