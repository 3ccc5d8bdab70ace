import { randomBytes } from 'node:crypto';
import { Client } from 'pg';
import { inject } from 'vitest';

export interface TestDatabase {
  url: string;
  /** Drops the database and its role. Sessions that are still open are closed. */
  drop(): Promise<void>;
}

/**
 * Creates an empty database. As in the cluster, its owner is a role without other rights.
 * @param postgresUrl the superuser's connection URL; required outside vitest
 */
export async function createDatabase(postgresUrl = inject('postgresUrl')): Promise<TestDatabase> {
  const name = `test_${randomBytes(8).toString('hex')}`;
  const password = randomBytes(16).toString('hex');
  const url = new URL(postgresUrl);
  await run(
    postgresUrl,
    `CREATE ROLE ${name} LOGIN PASSWORD '${password}'`,
    `CREATE DATABASE ${name} OWNER ${name} STRATEGY FILE_COPY`,
  );
  return {
    url: `postgres://${name}:${password}@${url.host}/${name}`,
    drop: () =>
      run(postgresUrl, `DROP DATABASE IF EXISTS ${name} WITH (FORCE)`, `DROP ROLE IF EXISTS ${name}`),
  };
}

async function run(postgresUrl: string, ...statements: string[]): Promise<void> {
  const client = new Client({ connectionString: postgresUrl });
  await client.connect();
  try {
    for (const statement of statements) await client.query(statement);
  } finally {
    await client.end();
  }
}
