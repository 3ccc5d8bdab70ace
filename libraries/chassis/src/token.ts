import { readFileSync } from 'node:fs';

/**
 * The `Authorization` header for the service account token in this file; no header without a file. The file is
 * read at each use, as the kubelet puts a new token in its place while the service runs: some ten microseconds.
 * @throws {Error} where the file holds no token; the message names TOKEN_FILE, and never has what is in it
 */
export function bearer(file: string | undefined): { Authorization?: string } {
  if (file === undefined) return {};
  const token = read(file);
  // RFC 6750, 2.1
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
