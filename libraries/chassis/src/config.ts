import { readFileSync } from 'node:fs';
import { z } from 'zod';

/** A setting that cannot be used. The message is one line that names the variable and what it must be. */
export class ConfigError extends Error {
  override name = 'ConfigError';
}

type Refine = { error: (issue: { input?: unknown }) => string };

/** The message for a wrong value: what it must be, and what it is. */
export function must(be: string): Refine {
  return { error: ({ input }) => `must be ${be}, not ${JSON.stringify(input)}` };
}

/** A variable that holds a number for which `accept` is true. */
export function number(be: string, accept: (value: number) => boolean) {
  return z
    .string()
    .refine((text) => text.trim() !== '' && accept(Number(text)), must(be))
    .transform(Number);
}

/** A variable that holds a whole number from `least` to `most`. */
export function integer(least: number, most: number) {
  return number(
    `a whole number from ${least} to ${most}`,
    (value) => Number.isInteger(value) && value >= least && value <= most,
  );
}

/** A variable that holds one of these words. */
export function oneOf<const T extends string>(...words: T[]) {
  return z.enum(words, must(`one of ${words.join(', ')}`));
}

/** A variable that holds an address on the web. */
export function httpUrl(example: string) {
  return z
    .string()
    .refine((url) => /^https?:$/.test(URL.parse(url)?.protocol ?? ''), must(`a full URL such as ${example}`));
}

export const logLevel = oneOf('trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent').default('info');

const shared = {
  DATABASE_URL: z.string().optional(),
  DATABASE_URL_FILE: z.string().optional(),
  /** The address to listen on; unset means all of them. */
  HOST: z.string().optional(),
  /** What nobody called development gets the stricter rules. */
  ENVIRONMENT: oneOf('dev', 'prod').default('prod'),
  ALLOW_RESET: oneOf('true', 'false')
    .default('false')
    .transform((word) => word === 'true'),
  LOG_LEVEL: logLevel,
  /** Where Prometheus finds the metrics. */
  METRICS_PORT: integer(0, 65_535).default(9091),
  /**
   * How long to go on serving after readiness fails, in milliseconds, so that load balancers notice first. At most what
   * leaves the drain its time, see `exitTimeout` in run.ts.
   */
  SHUTDOWN_DELAY_MS: integer(0, 10_000).default(0),
};

export type SharedConfig = z.output<z.ZodObject<typeof shared>>;

const whereProd = 'where ENVIRONMENT is prod';
const whereUnset = 'where ENVIRONMENT is not set, which means prod';

/**
 * Reads a service's settings: those that all services share, and its own.
 * @param own the service's own variables, each a zod schema over its text
 * @throws {ConfigError} at the first variable that is wrong
 */
export function readConfig<S extends z.ZodRawShape>(own: S, env: NodeJS.ProcessEnv) {
  const common = readVariables(shared, env);
  const inProd = common.ENVIRONMENT === 'prod' ? (env.ENVIRONMENT ? whereProd : whereUnset) : undefined;
  if (inProd !== undefined && common.ALLOW_RESET) {
    throw new ConfigError(`ALLOW_RESET must be false ${inProd}`);
  }
  return {
    ...common,
    ...readVariables(own, env),
    /** Says, for messages, that this is production; undefined where it is not. */
    inProd,
    databaseUrl: readDatabaseUrl(common),
  };
}

/** Reads variables, each by its zod schema. @throws {ConfigError} at the first that is wrong */
export function readVariables<S extends z.ZodRawShape>(shape: S, env: NodeJS.ProcessEnv) {
  // A variable set to nothing is what a shell or a manifest leaves behind: the same as unset.
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== ''));
  const result = z.object(shape).safeParse(given);
  if (result.success) return result.data;
  throw new ConfigError(describe(result.error));
}

/** One line that names the first thing that is wrong and what it must be. */
export function describe(error: z.ZodError): string {
  const [issue] = error.issues;
  return `${issue?.path.join('.')} ${issue?.message}`;
}

// Never shows a value: it holds a password.
function readDatabaseUrl(config: SharedConfig): string {
  const { DATABASE_URL: direct, DATABASE_URL_FILE: file } = config;
  if ((direct === undefined) === (file === undefined)) {
    throw new ConfigError('DATABASE_URL or DATABASE_URL_FILE must be set, and only one of them');
  }
  const name = file === undefined ? 'DATABASE_URL' : 'DATABASE_URL_FILE';
  const url = direct ?? readFirstLine(file!);
  if (!/^postgres(ql)?:$/.test(URL.parse(url)?.protocol ?? '')) {
    throw new ConfigError(`${name} must hold a URL such as postgres://user:password@host:5432/database`);
  }
  return url;
}

function readFirstLine(file: string): string {
  try {
    return readFileSync(file, 'utf8').trim();
  } catch (error) {
    throw new ConfigError(`DATABASE_URL_FILE must name a readable file: ${(error as Error).message}`, {
      cause: error,
    });
  }
}
