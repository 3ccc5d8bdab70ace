import { lstatSync, mkdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/**
 * Returns a folder for Node's compiled code that only this user can write, since Node runs that code without checking
 * its origin. Returns undefined if no folder qualifies.
 * @param root the folder that holds `services`; in a container it is read-only
 */
export function compileCache(root: string): string | undefined {
  const { NODE_COMPILE_CACHE: given } = process.env;
  const own = [join(root, '.payloop/compile-cache'), join(tmpdir(), `payloop-${process.getuid?.()}`)];
  return (given ? [given] : own).find(isPrivate);
}

/** Creates a missing folder. Returns false if it is a link, or if another user owns it or can write it. */
function isPrivate(folder: string): boolean {
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const found = lstatSync(folder);
    return found.isDirectory() && found.uid === process.getuid?.() && (found.mode & 0o022) === 0;
  } catch {
    return false;
  }
}
