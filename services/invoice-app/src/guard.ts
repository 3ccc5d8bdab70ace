import { HttpError } from '@payloop/kit/http-error.ts';
import { describeAll, error, type Answers } from '@payloop/kit/openapi.ts';
import type { Express, Handler } from 'express';
import { z } from 'zod';

/** The page takes nothing from elsewhere and nothing that is not a file, and nobody can frame it. */
const policy = [
  `default-src 'none'`,
  ...['script-src', 'style-src', 'connect-src', 'img-src'].map((source) => `${source} 'self'`),
  ...['base-uri', 'form-action', 'frame-ancestors'].map((source) => `${source} 'none'`),
  `require-trusted-types-for 'script'`,
].join('; ');

const securityHeaders = {
  'Content-Security-Policy': policy,
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
};

/**
 * For every answer: what browsers need to know to keep other sites out. A POST that a browser sends for another
 * site gets 403; what is no browser sends no Sec-Fetch-Site.
 */
const guard: Handler = (request, response, next) => {
  response.set(securityHeaders);
  const site = request.get('Sec-Fetch-Site') ?? 'none';
  if (request.method === 'POST' && site !== 'same-origin' && site !== 'none') {
    throw new HttpError(403, 'not for other sites');
  }
  next();
};

/** Guards all that is added from here on. */
export function addGuard(app: Express): void {
  app.use(guard);
  const headers = Object.entries(securityHeaders).map(([name, value]) => [name, z.literal(value)]);
  describeAll(app, () => ({ answerHeaders: z.object(Object.fromEntries(headers)) }));
}

/** What `guard` answers to a POST. */
export const crossSite = (): Answers => ({ 403: error('A browser sends it for another site.') });
