import { ConfigError, must, oneOf } from '@payloop/chassis/config.ts';
import type { Log } from '@payloop/chassis/log.ts';
import { requestId } from '@payloop/chassis/server.ts';
import { bearer } from '@payloop/chassis/token.ts';
import type { Handler } from 'express';
import {
  createRemoteJWKSet,
  customFetch,
  errors,
  jwtVerify,
  type JWTPayload,
  type JWTVerifyGetKey,
} from 'jose';
import { z } from 'zod';

/** The tokens that are accepted. */
export interface TokenRules {
  audience: string;
  issuer: string;
  /** The full names of the service accounts. */
  subjects: string[];
  /** The URL of the issuer's keys. */
  jwksUrl: URL;
  /** The file with the token that the issuer requires for its keys; undefined if it requires none. */
  tokenFile: string | undefined;
}

const musts = {
  TOKEN_AUDIENCE: 'the audience that tokens are made for, such as payment-provider',
  TOKEN_ISSUER: 'the issuer of the tokens, such as https://kubernetes.default.svc.cluster.local',
  TOKEN_SUBJECTS: 'service accounts such as system:serviceaccount:namespace:name, separated by commas',
  TOKEN_JWKS_URL: 'the https URL of the issuer’s keys, or an http URL on this machine',
};
type Required = keyof typeof musts;

export const authVariables = {
  AUTH: oneOf('required', 'off').optional(),
  TOKEN_AUDIENCE: z.string().optional(),
  TOKEN_ISSUER: z.string().optional(),
  TOKEN_SUBJECTS: z
    .string()
    .refine(
      (text) => text.split(',').every((name) => /^system:serviceaccount:[a-z0-9-]+:[a-z0-9.-]+$/.test(name)),
      must(musts.TOKEN_SUBJECTS),
    )
    .transform((text) => text.split(','))
    .optional(),
  TOKEN_JWKS_URL: z
    .string()
    .refine((text) => isSafe(URL.parse(text)), must(musts.TOKEN_JWKS_URL))
    .transform((text) => new URL(text))
    .optional(),
  TOKEN_FILE: z.string().optional(),
};
type AuthConfig = z.output<z.ZodObject<typeof authVariables>>;

/** Whether no one on the network path can substitute other keys. */
function isSafe(url: URL | null): boolean {
  if (url?.protocol === 'https:') return true;
  return url?.protocol === 'http:' && /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(url.hostname);
}

/**
 * Reads the rules for tokens; undefined if no token is required.
 * @param where the reason why this is production, for messages; undefined elsewhere
 * @throws {ConfigError} when the rules are incomplete, or set without AUTH, or when AUTH is not set in production
 */
export function readTokenRules(config: AuthConfig, where: string | undefined): TokenRules | undefined {
  const names = Object.keys(musts) as Required[];
  const given = names.find((name) => config[name] !== undefined);
  if (config.AUTH === undefined && given !== undefined) {
    throw new ConfigError(`AUTH must be required or off where ${given} is set`);
  }
  if (config.AUTH === undefined && where !== undefined) {
    throw new ConfigError(`AUTH must be required or off ${where}`);
  }
  if (config.AUTH !== 'required') return undefined;
  const need = <N extends Required>(name: N): NonNullable<AuthConfig[N]> => {
    const value = config[name];
    if (value == null) throw new ConfigError(`${name} must be set where AUTH is required: ${musts[name]}`);
    return value;
  };
  return {
    audience: need('TOKEN_AUDIENCE'),
    issuer: need('TOKEN_ISSUER'),
    subjects: need('TOKEN_SUBJECTS'),
    jwksUrl: need('TOKEN_JWKS_URL'),
    tokenFile: config.TOKEN_FILE,
  };
}

/** The algorithms that Kubernetes signs with. None is symmetric, as a public key would then serve as the secret. */
const algorithms = ['RS256', 'ES256'];
/** How far the clocks of two nodes may differ, in seconds. */
export const clockTolerance = 5;
/** How long the issuer may take to send its keys, in milliseconds: less than a client waits for its payment. */
const keysTimeout = 1_000;
/** The minimum time between two fetches of the keys because of an unknown key, in milliseconds. */
const keysCooldown = 1_000;
/**
 * How long keys are used, in milliseconds, so that a revoked key goes away. The limit also holds while the issuer is
 * down: the tokens that it issued expire in that time too.
 */
const keysMaxAge = 600_000;
/** How long a client should wait while there are no keys, in seconds. */
const retryAfter = 1;

/** The keys cannot be loaded, so the token cannot be judged. */
class KeysUnavailable extends Error {}

/**
 * Lets requests pass that carry a valid token of one of the service accounts. Answers the others with 401, or with 403
 * if the token is valid but of another account. Answers with 503 while the issuer's keys cannot be loaded. Only the log
 * has the reason.
 */
export function requireToken(rules: TokenRules, log: Log): Handler {
  const { audience, issuer, subjects } = rules;
  const options = { algorithms, audience, issuer, clockTolerance, requiredClaims: ['exp', 'sub'] };
  const findKey = createKeySet(rules);
  let lastMessage = '';
  return async (request, response, next) => {
    const refuse = (status: number, error: string, reason: string) => {
      log.warn({ requestId: requestId(response), reason }, `a request was refused: ${error}`);
      if (status === 401) response.set('WWW-Authenticate', 'Bearer');
      response.status(status).json({ error });
    };
    const [, token] = /^Bearer +(\S+)$/i.exec(request.get('Authorization') ?? '') ?? [];
    if (token === undefined) {
      refuse(401, 'unauthorized', 'no token');
      return;
    }
    let payload: JWTPayload;
    try {
      ({ payload } = await jwtVerify(token, findKey, options));
      lastMessage = '';
    } catch (error) {
      if (error instanceof errors.JOSEError) {
        refuse(401, 'unauthorized', error.message);
        return;
      }
      // Any other error is a fault of the keys: they cannot be loaded, or not be used, such as a key of 1024 bits.
      const { message } = error as Error;
      // Logged once per reason, not once per request.
      if (message !== lastMessage) log.error(`no token can be checked: ${message}`);
      lastMessage = message;
      response.status(503).set('Retry-After', `${retryAfter}`).json({ error: 'no token can be checked' });
      return;
    }
    if (subjects.includes(payload.sub ?? '')) next();
    else refuse(403, 'forbidden', `a token of ${payload.sub}`);
  };
}

function createKeySet({ jwksUrl, tokenFile }: TokenRules): JWTVerifyGetKey {
  const keys = createRemoteJWKSet(jwksUrl, {
    timeoutDuration: keysTimeout,
    cooldownDuration: keysCooldown,
    cacheMaxAge: keysMaxAge,
    [customFetch]: async (url, { headers, ...init }) => {
      const response = await fetch(url, {
        ...init,
        headers: { ...Object.fromEntries(headers), ...bearer(tokenFile) },
      });
      if (response.status !== 200) throw new Error(`it answered ${response.status}`);
      return response;
    },
  });
  return async (header, token) => {
    try {
      return await keys(header, token);
    } catch (error) {
      // These two are faults of the token.
      const { JWKSNoMatchingKey, JWKSMultipleMatchingKeys } = errors;
      if (error instanceof JWKSNoMatchingKey || error instanceof JWKSMultipleMatchingKeys) throw error;
      throw new KeysUnavailable(`the keys of ${jwksUrl.href} cannot be loaded: ${reasonOf(error)}`, {
        cause: error,
      });
    }
  };
}

/** Returns why a fetch failed: the message of the error's cause, or its code if several addresses were tried. */
function reasonOf(error: unknown): string {
  const { message, cause } = error as Error;
  const { message: inner, code } = (cause ?? {}) as NodeJS.ErrnoException;
  return inner || code || message;
}
