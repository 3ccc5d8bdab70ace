import { lstatSync, mkdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/**
 * A folder for what Node compiled, that nobody but this user can write: Node runs what is in it without a look at
 * where it came from. Undefined where none can be had.
 * @param root the folder that holds `services`; in a container it is read-only
 */
export function compileCache(root: string): string | undefined {
  const { NODE_COMPILE_CACHE: given } = process.env;
  const own = [join(root, '.payloop/compile-cache'), join(tmpdir(), `payloop-${process.getuid?.()}`)];
  return (given ? [given] : own).find(isPrivate);
}

/** Makes the folder where it is missing; false where it is somebody else's, writable for others, or a link. */
function isPrivate(folder: string): boolean {
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const found = lstatSync(folder);
    return found.isDirectory() && found.uid === process.getuid?.() && (found.mode & 0o022) === 0;
  } catch {
    return false;
  }
}
