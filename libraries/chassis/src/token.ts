import { readFileSync } from 'node:fs';

/**
 * Returns the `Authorization` header for the service account token in this file, or no header if `file` is undefined.
 * Reads the file at each use (some ten microseconds), because the kubelet replaces the token while the service runs.
 * @throws {Error} if the file holds no token; the message names TOKEN_FILE and never contains the file's content
 */
export function bearer(file: string | undefined): { Authorization?: string } {
  if (file === undefined) return {};
  const token = read(file);
  // The syntax of a bearer token: RFC 6750, section 2.1.
  if (!/^[\w.~+/-]+=*$/.test(token)) throw new Error(`TOKEN_FILE ${file} holds no token`);
  return { Authorization: `Bearer ${token}` };
}

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8').trim();
  } catch (cause) {
    throw new Error(`TOKEN_FILE cannot be read: ${(cause as Error).message}`, { cause });
  }
}
