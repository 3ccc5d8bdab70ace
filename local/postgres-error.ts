/** An error whose message is shown to the user unchanged. */
export class PostgresError extends Error {}
