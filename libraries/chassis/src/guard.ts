import type { IncomingHttpHeaders } from 'node:http';
import { isIP } from 'node:net';
import type { Express, Handler } from 'express';
import { z } from 'zod';
import { HttpError } from './http-error.ts';
import { describeAll, error, type Responses } from './openapi.ts';

/** The page loads only files of its own origin, never inline code, and no page can frame it. */
const policy = [
  `default-src 'none'`,
  ...['script-src', 'style-src', 'connect-src', 'img-src'].map((source) => `${source} 'self'`),
  ...['base-uri', 'form-action', 'frame-ancestors'].map((source) => `${source} 'none'`),
  `require-trusted-types-for 'script'`,
].join('; ');

const commonHeaders = { 'X-Content-Type-Options': 'nosniff' };
/**
 * For responses to GET and HEAD, the only ones that another site can make a browser show. Responses to payments omit
 * these headers: five headers cost client and server a tenth of a payment's time.
 */
const readHeaders = {
  ...commonHeaders,
  'Content-Security-Policy': policy,
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
};

/** Whether this service accepts requests with this `Host` header. */
export type HostRule = (host: string | undefined) => boolean;

/**
 * In development a service accepts loopback names, IP addresses and its own names in the cluster. This prevents DNS
 * rebinding: an attacker could point any other name here, and the browser would let the attacker's page read the
 * responses. IP addresses are safe, because they do not depend on DNS; the kubelet and Prometheus use them. In
 * production the Ingress decides which names reach the service.
 * @param service the name of the service and of its namespace
 */
export function hostRule(environment: 'dev' | 'prod', service: string): HostRule {
  if (environment === 'prod') return () => true;
  const inCluster = [service, `${service}.${service}`, `${service}.${service}.svc`];
  const names = new Set(['localhost', ...inCluster, `${service}.${service}.svc.cluster.local`]);
  return (host) => {
    // Every browser sends a `Host`. HTTP/1.0 has none, and the development gateway then forwards an empty one.
    if (!host) return true;
    const name = URL.parse(`http://${host}`)?.hostname ?? '';
    return names.has(name) || name.endsWith('.localhost') || isIP(name.replace(/^\[(.*)\]$/, '$1')) > 0;
  };
}

/**
 * Whether a browser sends this request on behalf of another site. Browsers say so in `Sec-Fetch-Site` if the address is
 * loopback or https. Otherwise the page's `Origin` is compared with the `Host`. A request with neither header does not
 * come from a browser: browsers send `Origin` with every method except GET and HEAD.
 */
function isCrossSite({ 'sec-fetch-site': site, origin, host }: IncomingHttpHeaders): boolean {
  if (site !== undefined) return site !== 'same-origin' && site !== 'none';
  if (origin === undefined) return false;
  const from = URL.parse(origin);
  // Parses `Host` with the page's scheme, so that both sides have the same default port. The schemes themselves cannot
  // be compared: a proxy in front may use https.
  return from === null || from.host === '' || from.host !== URL.parse(`${from.protocol}//${host}`)?.host;
}

const isRead = (method: string) => method === 'GET' || method === 'HEAD';

/** Sets the security headers and rejects requests for other hosts or on behalf of other sites. */
function createGuard(isServed: HostRule): Handler {
  return (request, response, next) => {
    const { method, headers } = request;
    response.set(isRead(method) ? readHeaders : commonHeaders);
    if (!isServed(headers.host)) {
      throw new HttpError(421, `not served as ${headers.host}: in development, use localhost`);
    }
    if (!isRead(method) && isCrossSite(headers)) {
      throw new HttpError(403, 'cross-site requests are not allowed');
    }
    next();
  };
}

/** Guards every route that is registered after this call. */
export function addGuard(app: Express, isServed: HostRule): void {
  app.use(createGuard(isServed));
  describeAll(app, (method) => {
    const headers = Object.entries(method === 'get' ? readHeaders : commonHeaders);
    return {
      responseHeaders: z.object(Object.fromEntries(headers.map(([name, value]) => [name, z.literal(value)]))),
    };
  });
}

/** The response of the guard to a cross-site POST. */
export const crossSite = (): Responses => ({
  403: error('A browser sent the request on behalf of another site.'),
});
