import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { exportJWK, generateKeyPair, SignJWT, type CryptoKey, type JWK } from 'jose';

export const audience = 'payment-provider';
export const subject = 'system:serviceaccount:invoice-app:invoice-app';

type Algorithm = 'RS256' | 'ES256' | 'EdDSA';
/** Claims, right or wrong. */
export type Claims = Record<string, unknown>;

interface Key {
  privateKey: CryptoKey;
  publicJwk: JWK & { kid: string };
}

/** Makes tokens as a cluster does, and serves the keys to check them with. */
export class Issuer {
  /** The keys that are served, by their ids. */
  readonly keys = new Map<string, Key>();
  /** What the keys were asked for with: the `Authorization` header of each request. */
  readonly asked: (string | undefined)[] = [];
  /** What is answered instead of the keys; a status of 0 is no answer. */
  fault: { status: number; body: string } | undefined;
  readonly #server = createServer((request, response) => {
    this.asked.push(request.headers.authorization);
    if (this.fault?.status === 0) return;
    const keys = [...this.keys.values()].map(({ publicJwk }) => publicJwk);
    const { status, body } = this.fault ?? { status: 200, body: JSON.stringify({ keys }) };
    response.writeHead(status, { 'Content-Type': 'application/jwk-set+json' }).end(body);
  });
  #port = 0;

  /** An issuer that answers, with one key, `first`. */
  static async start(): Promise<Issuer> {
    const issuer = new Issuer();
    await issuer.addKey('first');
    await issuer.listen();
    return issuer;
  }

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  /** What payment-provider is told to take its tokens only. */
  get env(): Record<string, string> {
    return {
      AUTH: 'required',
      TOKEN_AUDIENCE: audience,
      TOKEN_ISSUER: this.url,
      TOKEN_SUBJECTS: subject,
      TOKEN_JWKS_URL: `${this.url}/openid/v1/jwks`,
    };
  }

  /** Answers, at the same address each time. */
  async listen(): Promise<void> {
    this.#server.listen(this.#port, '127.0.0.1');
    await once(this.#server, 'listening');
    this.#port = (this.#server.address() as AddressInfo).port;
  }

  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.#server.closeAllConnections();
    await closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** @param served whether it is among the keys that are served */
  async addKey(
    kid: string,
    { alg = 'RS256', served = true }: { alg?: Algorithm; served?: boolean } = {},
  ): Promise<Key> {
    const { privateKey, publicKey } = await generateKeyPair(alg, { extractable: true });
    const key = { privateKey, publicJwk: { ...(await exportJWK(publicKey)), kid, alg, use: 'sig' } };
    if (served) this.keys.set(kid, key);
    return key;
  }

  /**
   * A token as the kubelet puts it into a pod.
   * @param claims in place of the right ones; a claim that is undefined is left out
   */
  async sign(claims: Claims = {}, key = this.keys.get('first')!): Promise<string> {
    const now = Math.floor(Date.now() / 1_000);
    const right = { iss: this.url, aud: [audience], sub: subject, iat: now, nbf: now, exp: now + 600 };
    const { kid, alg } = key.publicJwk;
    // Through JSON, which leaves out what is undefined.
    const payload = JSON.parse(JSON.stringify({ ...right, ...claims }));
    return new SignJWT(payload).setProtectedHeader({ alg: alg!, kid }).sign(key.privateKey);
  }
}
