import { createHash } from 'node:crypto';
import { lstatSync, readdirSync, readFileSync, statSync, type Stats } from 'node:fs';

/** The sources of a service and of the chassis on disk. */
export interface Sources {
  /** Identifies the code, see `hashSource`. */
  hash: string;
  /** The last change of a source file, in content or metadata, in milliseconds since 1970; 0 without source files. */
  changedAt: number;
  /**
   * One line for each source file or folder that cannot be read, with its path, and for each folder that is too large.
   * An unreadable source file counts in the hash by its path alone.
   */
  problems: string[];
}

/**
 * The maximum size of each source folder in a cluster, in MiB. Its volume in kustomize/overlays/dev has the same value
 * as its `sizeLimit`.
 */
const maxFolderSize = 16;

/** The folders of a service's sources, relative to the root. */
export function sourceFolders(service: string): string[] {
  return ['libraries/chassis/src', `services/${service}/src`];
}

/**
 * Identifies the code of a service: the SHA-256 (hex) of the paths and contents of its source files and those of the
 * chassis. `hash_source` in test.sh computes the same hash from the working tree, to check which code a test ran
 * against. Change both together.
 *
 * A source file has a name that ends in `.ts` and not in `.test.ts`. It is a regular file, or a symlink to one. Files
 * and folders with a name that begins with a dot are ignored: editors store locks there, and macOS resource forks.
 * @param root the folder that holds `services`
 */
export function hashSource(root: string, service: string): string {
  return readSources(root, service).hash;
}

/** Reads the sources of a service and of the chassis. Never throws: unreadable entries become problems. */
export function readSources(root: string, service: string): Sources {
  const found: Found = { root, size: 0, files: [], problems: [] };
  for (const folder of sourceFolders(service)) {
    found.size = 0;
    collect(found, folder, []);
    const size = Math.ceil(found.size / 2 ** 20);
    if (size > maxFolderSize)
      found.problems.push(
        `${folder} holds ${size} MiB; in a cluster, Kubernetes evicts the pod above ${maxFolderSize} MiB`,
      );
  }
  const files = found.files.toSorted((a, b) => (a.path < b.path ? -1 : 1));
  const digests = files.map((file) => digest(found, file));
  const names = files.map(({ path }) => bytes(`${path}\0`));
  return {
    hash: sha256(Buffer.concat([...names, bytes(digests.join(''))])),
    changedAt: Math.max(0, ...files.map(({ stats }) => stats.ctimeMs)),
    problems: found.problems,
  };
}

/** Paths are Latin-1 strings, one character per byte: they can hold any name, and they sort as in the C locale. */
interface Found {
  root: string;
  /** The total size of the current folder's files, sources or not, in bytes. */
  size: number;
  files: { path: string; stats: Stats }[];
  problems: string[];
}

/** @param above identifies the parent folders; a symlink back to one of them is skipped, as by find */
function collect(found: Found, folder: string, above: string[]): void {
  const stats = attempt(found, folder, () => statSync(absolute(found, folder)));
  if (stats === undefined) return;
  const identity = `${stats.dev}:${stats.ino}`;
  if (above.includes(identity)) return;
  const names = attempt(found, folder, () => readdirSync(absolute(found, folder), { encoding: 'buffer' }));
  for (const name of names?.map((each) => each.toString('latin1')) ?? []) {
    if (name.startsWith('.')) continue;
    const path = `${folder}/${name}`;
    const isSource = name.endsWith('.ts') && !name.endsWith('.test.ts');
    const entry = attempt(isSource ? found : undefined, path, () => statSync(absolute(found, path)));
    if (entry?.isDirectory()) collect(found, path, [...above, identity]);
    if (!entry?.isFile()) continue;
    found.size += entry.size;
    if (isSource) found.files.push({ path, stats: entry });
  }
}

/** Digests of files by path, with the state of the file that they belong to. */
const known = new Map<string, { state: string; text: string }>();
/** How old a file's last change must be, in milliseconds, so that the next change gets a different timestamp. */
const timeStep = 1_000;

/**
 * The hash in the format of sha256sum, without the name; empty if the file cannot be read. A file that has not changed
 * is not read again, because each save needs the hash twice.
 */
function digest(found: Found, { path, stats }: { path: string; stats: Stats }): string {
  const { dev, ino, size, mtimeMs, ctimeMs } = stats;
  const key = `${found.root}/${path}`;
  const state = [dev, ino, size, mtimeMs, ctimeMs].join();
  const seen = known.get(key);
  if (seen?.state === state) return seen.text;
  const isSettled = ctimeMs < Date.now() - timeStep;
  const content = attempt(found, path, () => readFileSync(absolute(found, path)));
  const text = content === undefined ? '' : `${sha256(content)}\n`;
  if (isSettled && content !== undefined) known.set(key, { state, text });
  return text;
}

/** @param found collects the problem; undefined for entries that are not sources */
function attempt<T>(found: Found | undefined, path: string, work: () => T): T | undefined {
  try {
    return work();
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException;
    if (found === undefined) return undefined;
    // An entry deleted since its folder was listed is not a problem. A broken symlink is one.
    const isBrokenLink = code === 'ENOENT' && isLink(found, path);
    if (code !== 'ENOENT' || isSourceFolder(path) || isBrokenLink) {
      const why = isBrokenLink ? 'is a broken symlink' : (reasons[code] ?? `cannot be read (${code})`);
      found.problems.push(`${bytes(path).toString()} ${why}`);
    }
    return undefined;
  }
}

const reasons: Record<string, string> = {
  ENOENT: 'is missing',
  ELOOP: 'is a symlink in a loop of symlinks',
  EACCES: 'cannot be read: its permissions forbid it',
};

/** Whether a path is one of `sourceFolders`, and not below one. */
function isSourceFolder(path: string): boolean {
  return path.split('/').length === 3;
}

function isLink(found: Found, path: string): boolean {
  try {
    return lstatSync(absolute(found, path)).isSymbolicLink();
  } catch {
    return false;
  }
}

function absolute({ root }: { root: string }, path: string): Buffer {
  return Buffer.concat([Buffer.from(`${root}/`), bytes(path)]);
}

function bytes(latin1: string): Buffer {
  return Buffer.from(latin1, 'latin1');
}

function sha256(data: string | Buffer): string {
  return createHash('sha256').update(data).digest('hex');
}
