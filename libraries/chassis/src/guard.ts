import type { IncomingHttpHeaders } from 'node:http';
import { isIP } from 'node:net';
import type { Express, Handler } from 'express';
import { z } from 'zod';
import { HttpError } from './http-error.ts';
import { describeAll, error, type Answers } from './openapi.ts';

/** The page takes nothing from elsewhere and nothing that is not a file, and nobody can frame it. */
const policy = [
  `default-src 'none'`,
  ...['script-src', 'style-src', 'connect-src', 'img-src'].map((source) => `${source} 'self'`),
  ...['base-uri', 'form-action', 'frame-ancestors'].map((source) => `${source} 'none'`),
  `require-trusted-types-for 'script'`,
].join('; ');

const everyAnswer = { 'X-Content-Type-Options': 'nosniff' };
/**
 * For answers to GET and HEAD, the only ones that another site can have a browser show. A payment's answer does without
 * them: five headers cost both sides a tenth of its time.
 */
const shownAnswer = {
  ...everyAnswer,
  'Content-Security-Policy': policy,
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
};

/** Whether a request is for this service by the name that it is asked for under, its `Host`. */
export type HostRule = (host: string | undefined) => boolean;

/**
 * The names that a service is served as. In development these are loopback's, addresses, and the service's name in
 * the cluster: a site elsewhere could make any other name lead here and then read all that is answered, as the
 * browser takes it for that site's own (DNS rebinding). An address is no name that somebody could make lead here;
 * the kubelet and Prometheus ask by it. In production the Ingress says which names there are.
 * @param service its name, which is its namespace's too
 */
export function hostRule(environment: 'dev' | 'prod', service: string): HostRule {
  if (environment === 'prod') return () => true;
  const inCluster = [service, `${service}.${service}`, `${service}.${service}.svc`];
  const names = new Set(['localhost', ...inCluster, `${service}.${service}.svc.cluster.local`]);
  return (host) => {
    // Every browser sends one; HTTP/1.0 has none, which the gateway of development passes on as an empty one.
    if (!host) return true;
    const name = URL.parse(`http://${host}`)?.hostname ?? '';
    return names.has(name) || name.endsWith('.localhost') || isIP(name.replace(/^\[(.*)\]$/, '$1')) > 0;
  };
}

/**
 * Whether a browser sends this request for another site. Every browser says so itself (`Sec-Fetch-Site`) where the
 * address is one of loopback or https; elsewhere the origin of the page is compared with what was asked for. A
 * request without both is no browser's: they send an `Origin` with all but GET and HEAD.
 */
function isCrossSite({ 'sec-fetch-site': site, origin, host }: IncomingHttpHeaders): boolean {
  if (site !== undefined) return site !== 'same-origin' && site !== 'none';
  if (origin === undefined) return false;
  const from = URL.parse(origin);
  // With the page's scheme, so that a port that goes without saying is the same on both sides. It cannot be compared
  // itself: whether a proxy in front speaks https is not known here.
  return from === null || from.host === '' || from.host !== URL.parse(`${from.protocol}//${host}`)?.host;
}

const isRead = (method: string) => method === 'GET' || method === 'HEAD';

/** For every answer: what browsers need to know to keep other sites out. */
function createGuard(isServed: HostRule): Handler {
  return (request, response, next) => {
    const { method, headers } = request;
    response.set(isRead(method) ? shownAnswer : everyAnswer);
    if (!isServed(headers.host)) {
      throw new HttpError(421, `not served as ${headers.host}: in development ask for localhost`);
    }
    if (!isRead(method) && isCrossSite(headers)) {
      throw new HttpError(403, 'not for other sites');
    }
    next();
  };
}

/** Guards all that is added from here on. */
export function addGuard(app: Express, isServed: HostRule): void {
  app.use(createGuard(isServed));
  describeAll(app, (method) => {
    const headers = Object.entries(method === 'get' ? shownAnswer : everyAnswer);
    return {
      answerHeaders: z.object(Object.fromEntries(headers.map(([name, value]) => [name, z.literal(value)]))),
    };
  });
}

/** What the guard answers to a POST. */
export const crossSite = (): Answers => ({ 403: error('A browser sends it for another site.') });
