import type { IncomingHttpHeaders } from 'node:http';
import { isIP } from 'node:net';
import type { Express, Handler } from 'express';
import { z } from 'zod';
import { HttpError } from './http-error.ts';
import { describeAll, error, type Responses } from './openapi.ts';

/** The Content-Security-Policy: the page loads only files of its own origin, no inline code, and cannot be framed. */
const contentSecurityPolicy = [
  `default-src 'none'`,
  ...['script-src', 'style-src', 'connect-src', 'img-src'].map((directive) => `${directive} 'self'`),
  ...['base-uri', 'form-action', 'frame-ancestors'].map((directive) => `${directive} 'none'`),
  `require-trusted-types-for 'script'`,
].join('; ');

const commonHeaders = { 'X-Content-Type-Options': 'nosniff' };
/**
 * Only for GET and HEAD. Responses to other methods have only `commonHeaders`: on a payment, all five headers would
 * take a tenth of its time.
 */
const readHeaders = {
  ...commonHeaders,
  'Content-Security-Policy': contentSecurityPolicy,
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
};

/** Whether this service accepts requests with this `Host` header. */
export type HostRule = (host: string | undefined) => boolean;

/**
 * In development a service accepts loopback names, IP addresses and its own names in the cluster. This prevents DNS
 * rebinding: an attacker could point any other name here, and the browser would let the attacker's page read the
 * responses. IP addresses are safe, because they do not depend on DNS, and Prometheus uses them. In production the
 * Ingress decides which names reach the service.
 * @param service the name of the service and of its namespace
 */
export function hostRule(environment: 'dev' | 'prod', service: string): HostRule {
  if (environment === 'prod') return () => true;
  const inCluster = [service, `${service}.${service}`, `${service}.${service}.svc`];
  const names = new Set(['localhost', ...inCluster, `${service}.${service}.svc.cluster.local`]);
  return (host) => {
    // Every browser sends a `Host`. An HTTP/1.0 request may lack one. In development, the proxy in
    // libraries/chassis/dev/gateway.ts forwards such a request with an empty one.
    if (!host) return true;
    const name = URL.parse(`http://${host}`)?.hostname ?? '';
    return names.has(name) || name.endsWith('.localhost') || isIP(name.replace(/^\[(.*)\]$/, '$1')) > 0;
  };
}

/**
 * Whether a browser sends this request on behalf of a page of another origin. Only for methods other than GET and HEAD.
 * Current browsers always send `Sec-Fetch-Site` if the URL is loopback or https. Without it, compares `Origin` with
 * `Host`. Browsers send `Origin` with all of these methods, so a request with neither header is not from a browser.
 */
function isCrossOrigin({ 'sec-fetch-site': site, origin, host }: IncomingHttpHeaders): boolean {
  if (site !== undefined) return site !== 'same-origin' && site !== 'none';
  if (origin === undefined) return false;
  const from = URL.parse(origin);
  // Parses `Host` with the page's scheme, so that both sides have the same default port. The schemes themselves cannot
  // be compared: a proxy in front may use https.
  return from === null || from.host === '' || from.host !== URL.parse(`${from.protocol}//${host}`)?.host;
}

const isRead = (method: string) => method === 'GET' || method === 'HEAD';

/** Sets the security headers. Rejects requests for other hosts, and requests of other origins unless they only read. */
function createGuard(isServed: HostRule): Handler {
  return (request, response, next) => {
    const { method, headers } = request;
    response.set(isRead(method) ? readHeaders : commonHeaders);
    if (!isServed(headers.host)) {
      throw new HttpError(
        421,
        `this service does not accept the host ${headers.host}: in development, use localhost`,
      );
    }
    if (!isRead(method) && isCrossOrigin(headers)) {
      throw new HttpError(403, 'cross-origin requests are not allowed');
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

/** The response of the guard to a cross-origin POST. */
export const crossOrigin = (): Responses => ({
  403: error('A browser sent the request on behalf of another origin.'),
});
