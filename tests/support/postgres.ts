import type { TestProject } from 'vitest/node';
import { startPostgres } from '../../local/postgres.ts';

declare module 'vitest' {
  export interface ProvidedContext {
    postgresUrl: string;
  }
}

/** Starts one Postgres for the whole run, because its start takes longer than most test files. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const postgres = await startPostgres({ databases: [] });
  project.provide('postgresUrl', postgres.url('postgres'));
  return postgres.stop;
}
