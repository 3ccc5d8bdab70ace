import { readFileSync } from 'node:fs';
import { z } from 'zod';

/** An invalid setting. The message is one line that names the variable and the allowed values. */
export class ConfigError extends Error {
  override name = 'ConfigError';
}

type Refine = { error: (issue: { input?: unknown }) => string };

/** The message for an invalid value: the allowed values and the value given. */
export function must(be: string): Refine {
  return { error: ({ input }) => `must be ${be}, not ${JSON.stringify(input)}` };
}

/** A variable that holds a number that `accept` allows. */
export function number(be: string, accept: (value: number) => boolean) {
  return z
    .string()
    .refine((text) => text.trim() !== '' && accept(Number(text)), must(be))
    .transform(Number);
}

/** A variable that holds a whole number from `min` to `max`. */
export function integer(min: number, max: number) {
  return number(
    `a whole number from ${min} to ${max}`,
    (value) => Number.isInteger(value) && value >= min && value <= max,
  );
}

/** A variable that holds one of these words. */
export function oneOf<const T extends string>(...words: T[]) {
  return z.enum(words, must(`one of ${words.join(', ')}`));
}

/** A variable that holds an HTTP or HTTPS URL. */
export function httpUrl(example: string) {
  return z
    .string()
    .refine((url) => /^https?:$/.test(URL.parse(url)?.protocol ?? ''), must(`a full URL such as ${example}`));
}

export const logLevel = oneOf('trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent').default('info');

const shared = {
  DATABASE_URL: z.string().optional(),
  DATABASE_URL_FILE: z.string().optional(),
  /** The address to listen on; all addresses if unset. */
  HOST: z.string().optional(),
  /** Defaults to production, which has the stricter rules. */
  ENVIRONMENT: oneOf('dev', 'prod').default('prod'),
  ALLOW_RESET: oneOf('true', 'false')
    .default('false')
    .transform((word) => word === 'true'),
  LOG_LEVEL: logLevel,
  /** The port that Prometheus scrapes. */
  METRICS_PORT: integer(0, 65_535).default(9091),
  /**
   * How long to keep serving after readiness fails, in milliseconds, so that load balancers notice first. The limit
   * leaves `drainTimeout` (20 s, server.ts) and 3 s of `exitTimeout` (33 s, run.ts).
   */
  SHUTDOWN_DELAY_MS: integer(0, 10_000).default(0),
};

export type SharedConfig = z.output<z.ZodObject<typeof shared>>;

const whenProd = 'when ENVIRONMENT is prod';
const whenUnset = 'when ENVIRONMENT is unset (default: prod)';

/**
 * Reads a service's settings, both the shared ones and its own.
 * @param own the service's own variables, each with a zod schema of its text
 * @throws {ConfigError} for the first invalid variable
 */
export function readConfig<S extends z.ZodRawShape>(own: S, env: NodeJS.ProcessEnv) {
  const common = readVariables(shared, env);
  const inProd = common.ENVIRONMENT === 'prod' ? (env.ENVIRONMENT ? whenProd : whenUnset) : undefined;
  if (inProd !== undefined && common.ALLOW_RESET) {
    throw new ConfigError(`ALLOW_RESET must be false ${inProd}`);
  }
  return {
    ...common,
    ...readVariables(own, env),
    /** Completes messages about the rules of production; undefined in development. */
    inProd,
    databaseUrl: readDatabaseUrl(common),
  };
}

/** Reads variables, each with its zod schema. @throws {ConfigError} for the first invalid variable */
export function readVariables<S extends z.ZodRawShape>(shape: S, env: NodeJS.ProcessEnv) {
  // Shells and manifests leave empty variables behind: an empty variable counts as unset.
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== ''));
  const result = z.object(shape).safeParse(given);
  if (result.success) return result.data;
  throw new ConfigError(describe(result.error));
}

/** One line that names the first invalid field and the allowed values. */
export function describe(error: z.ZodError): string {
  const [issue] = error.issues;
  return `${issue?.path.join('.')} ${issue?.message}`;
}

// Messages never contain the URL, because it holds a password.
function readDatabaseUrl(config: SharedConfig): string {
  const { DATABASE_URL: direct, DATABASE_URL_FILE: file } = config;
  if ((direct === undefined) === (file === undefined)) {
    throw new ConfigError('DATABASE_URL or DATABASE_URL_FILE must be set, and only one of them');
  }
  const name = file === undefined ? 'DATABASE_URL' : 'DATABASE_URL_FILE';
  const url = direct ?? readTrimmed(file!);
  if (!/^postgres(ql)?:$/.test(URL.parse(url)?.protocol ?? '')) {
    throw new ConfigError(`${name} must hold a URL such as postgres://user:password@host:5432/database`);
  }
  return url;
}

function readTrimmed(file: string): string {
  try {
    return readFileSync(file, 'utf8').trim();
  } catch (error) {
    throw new ConfigError(`DATABASE_URL_FILE must name a readable file: ${(error as Error).message}`, {
      cause: error,
    });
  }
}
