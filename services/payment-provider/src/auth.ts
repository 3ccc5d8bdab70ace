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

/** Whose tokens are taken. */
export interface TokenRules {
  audience: string;
  issuer: string;
  /** Service accounts, by their full names. */
  subjects: string[];
  /** Where the issuer's keys are. */
  jwksUrl: URL;
  /** Holds the token that the issuer asks for in return for its keys, where it does. */
  tokenFile: string | undefined;
}

const musts = {
  TOKEN_AUDIENCE: 'the audience that tokens are made for, such as payment-provider',
  TOKEN_ISSUER: 'who makes the tokens, such as https://kubernetes.default.svc.cluster.local',
  TOKEN_SUBJECTS: 'service accounts such as system:serviceaccount:namespace:name, with commas between them',
  TOKEN_JWKS_URL: 'the https URL of the issuer’s keys, or an http one on this machine',
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

/** Whether nobody on the way can put in keys of their own. */
function isSafe(url: URL | null): boolean {
  if (url?.protocol === 'https:') return true;
  return url?.protocol === 'http:' && /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(url.hostname);
}

/**
 * The rules for tokens; undefined where none is asked for.
 * @param where says that this is production; undefined elsewhere
 * @throws {ConfigError} when they are not whole, or set without saying whether they hold, or not set in production
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

/** What Kubernetes signs with. Nothing symmetric: a public key would do as its secret. */
const algorithms = ['RS256', 'ES256'];
/** How far the clocks of two nodes may be apart, in seconds. */
export const clockTolerance = 5;
/** How long the issuer may take for its keys, in milliseconds: less than a client waits for its payment. */
const keysTimeout = 1_000;
/** How soon a key that is not known makes the keys be fetched again, in milliseconds. */
const keysCooldown = 1_000;
/**
 * How long keys are used, in milliseconds, as a key that was taken back has to go. No longer while the issuer is
 * away: the tokens that it made run out in that time too.
 */
const keysMaxAge = 600_000;
/** How long a client should wait while there are no keys, in seconds. */
const retryAfter = 1;

/** The keys cannot be had: nothing is known of the token. */
class KeysUnavailable extends Error {}

/**
 * Lets requests pass that carry a valid token of one of the service accounts. The others are answered: 401, or 403
 * where the token is valid and somebody else's, or 503 while the issuer's keys cannot be had. The reason is in the
 * log only.
 */
export function requireToken(rules: TokenRules, log: Log): Handler {
  const { audience, issuer, subjects } = rules;
  const options = { algorithms, audience, issuer, clockTolerance, requiredClaims: ['exp', 'sub'] };
  const findKey = createKeySet(rules);
  let said = '';
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
      said = '';
    } catch (error) {
      if (error instanceof errors.JOSEError) {
        refuse(401, 'unauthorized', error.message);
        return;
      }
      // What is not the token's fault is the keys': they cannot be had, or not be used, as one of 1024 bits.
      const { message } = error as Error;
      // Once a reason, not once a request.
      if (message !== said) log.error(`no token can be checked: ${message}`);
      said = message;
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
      // What the token is to blame for.
      const { JWKSNoMatchingKey, JWKSMultipleMatchingKeys } = errors;
      if (error instanceof JWKSNoMatchingKey || error instanceof JWKSMultipleMatchingKeys) throw error;
      throw new KeysUnavailable(`the keys of ${jwksUrl.href} cannot be had: ${reasonOf(error)}`, {
        cause: error,
      });
    }
  };
}

/** fetch says why it failed in the error's cause, of several addresses in its code only. */
function reasonOf(error: unknown): string {
  const { message, cause } = error as Error;
  const { message: inner, code } = (cause ?? {}) as NodeJS.ErrnoException;
  return inner || code || message;
}
