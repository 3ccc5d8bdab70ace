import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { exportJWK, generateKeyPair, SignJWT, type CryptoKey, type JWK } from 'jose';

export const audience = 'payment-provider';
export const subject = 'system:serviceaccount:invoice-app:invoice-app';

type Algorithm = 'RS256' | 'ES256' | 'EdDSA';
/** The claims of a token, valid or not. */
export type Claims = Record<string, unknown>;

interface Key {
  privateKey: CryptoKey;
  publicJwk: JWK & { kid: string };
}

/** Issues tokens as a cluster does, and serves the keys that verify them. */
export class Issuer {
  /** The keys that it serves, by id. */
  readonly keys = new Map<string, Key>();
  /** The `Authorization` header of each request for the keys. */
  readonly asked: (string | undefined)[] = [];
  /** The response it sends instead of the keys. A status of 0 means no response. */
  fault: { status: number; body: string } | undefined;
  readonly #server = createServer((request, response) => {
    this.asked.push(request.headers.authorization);
    if (this.fault?.status === 0) return;
    const keys = [...this.keys.values()].map(({ publicJwk }) => publicJwk);
    const { status, body } = this.fault ?? { status: 200, body: JSON.stringify({ keys }) };
    response.writeHead(status, { 'Content-Type': 'application/jwk-set+json' }).end(body);
  });
  #port = 0;

  /** Starts an issuer that listens and serves one key, `first`. */
  static async start(): Promise<Issuer> {
    const issuer = new Issuer();
    await issuer.addKey('first');
    await issuer.listen();
    return issuer;
  }

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  /** The environment that makes payment-provider accept only the tokens of this issuer. */
  get env(): Record<string, string> {
    return {
      AUTH: 'required',
      TOKEN_AUDIENCE: audience,
      TOKEN_ISSUER: this.url,
      TOKEN_SUBJECTS: subject,
      TOKEN_JWKS_URL: `${this.url}/openid/v1/jwks`,
    };
  }

  /** Listens. After `close`, it listens on the same port again. */
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

  /** @param served whether the issuer serves the public key */
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
   * Signs a token like those that the kubelet mounts into pods.
   * @param claims override the valid ones; an undefined claim is omitted
   * @param header fields to add to the header
   */
  async sign(claims: Claims = {}, key = this.keys.get('first')!, header = {}): Promise<string> {
    const now = Math.floor(Date.now() / 1_000);
    const valid = { iss: this.url, aud: [audience], sub: subject, iat: now, nbf: now, exp: now + 600 };
    const { kid, alg } = key.publicJwk;
    // The JSON round trip drops undefined claims.
    const payload = JSON.parse(JSON.stringify({ ...valid, ...claims }));
    return new SignJWT(payload).setProtectedHeader({ alg: alg!, kid, ...header }).sign(key.privateKey);
  }
}
