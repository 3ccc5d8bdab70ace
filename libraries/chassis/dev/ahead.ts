import { readFileSync, realpathSync, statSync } from 'node:fs';
import { registerHooks, stripTypeScriptTypes, type ResolveHookSync } from 'node:module';
import { fileURLToPath, pathToFileURL } from 'node:url';

/**
 * The suffix of the URLs of modules that `linkAhead` has linked. A file that has changed since it was linked, or that
 * imports such a file, is loaded again under its plain URL, as in a cold start.
 */
const mark = '?ahead';

/**
 * How old a file's last change must be, in milliseconds, so that the next change gets a different timestamp. This value
 * and the fields in `stateOf` are as in ../src/source.ts, which must not be imported before it is linked.
 */
const timeStep = 1_000;

interface Module {
  content: string;
  /** The state of its file, see `stateOf`; undefined if the file was too new for it. */
  state: string | undefined;
  /** The URLs of the files that it imports, before symlinks are resolved. */
  imports: string[];
}

/**
 * Links modules and their imports before the save that will run them: reads and compiles them. Evaluates none, so they
 * open nothing, and code that the save replaces leaves no state behind. If they do not link, or one is neither
 * TypeScript nor JSON, everything is loaded later as in a cold start, with the same errors. Import no source file before the promise resolves.
 * @param urls of files, before symlinks are resolved
 * @returns a function to call before the code is imported. From then on, a linked module is used if it and all its
 * imports are unchanged on disk. All others are loaded again.
 */
export async function linkAhead(urls: string[]): Promise<() => void> {
  /** By URL, without the mark. */
  const modules = new Map<string, Module>();
  /** The target of each imported URL, with symlinks resolved. */
  const targets = new Map<string, string>();
  let isLinking = true;
  let unchanged = new Set<string>();
  // The first import throws, so that the others are not evaluated.
  const imports = [`data:text/javascript,throw"linked"`, ...urls].map(
    (url) => `import ${JSON.stringify(url)};`,
  );
  const entry = `data:text/javascript,${encodeURIComponent(imports.join(''))}`;

  /**
   * Resolves an import of a package. Node caches each result under the URL of the importing file, which had the mark
   * while it was linked. If that file is loaded again under its plain URL, this asks with the mark, and Node answers
   * from its cache. If the result is a source file that no longer exists, it asks with the plain URL, and Node searches.
   */
  const resolvePackage: ResolveHookSync = (specifier, context, next) => {
    const { parentURL = '' } = context;
    if (!modules.has(parentURL)) return next(specifier, context);
    const resolved = next(specifier, { ...context, parentURL: parentURL + mark });
    if (!isSource(resolved.url) || follow(resolved.url) !== undefined) return resolved;
    // Names the parent: otherwise Node would use the parent of the previous call.
    return next(specifier, { ...context, parentURL });
  };
  const hooks = registerHooks({
    resolve(specifier, context, next) {
      const { parentURL = '' } = context;
      if (parentURL !== entry && !isSource(parentURL)) return next(specifier, context);
      const file = fileOf(specifier, parentURL);
      const target = file && follow(file);
      const resolved = target
        ? { url: target, shortCircuit: true }
        : resolvePackage(specifier, context, next);
      const { url } = resolved;
      if (!isSource(url)) return resolved;
      if (isLinking) {
        targets.set(file ?? url, url);
        modules.get(withoutMark(parentURL))?.imports.push(file ?? url);
      }
      return isLinking || unchanged.has(url) ? { ...resolved, url: url + mark } : resolved;
    },
    load(url, context, next) {
      if (!isLinking || !url.endsWith(mark)) return next(url, context);
      // Taken before the file is read, so that a change between the two leaves the file in another state than this.
      const before = Date.now();
      const { state, changedAt } = stateOf(withoutMark(url));
      const loaded = next(url, context);
      const { format, source } = loaded;
      const isTypeScript = format === 'module-typescript';
      if (!isTypeScript && format !== 'json') throw new Error('cannot be linked ahead');
      const content = Buffer.from(source as Uint8Array).toString();
      const isOld = changedAt < before - timeStep;
      modules.set(withoutMark(url), { content, state: isOld ? state : undefined, imports: [] });
      if (!isTypeScript) return loaded;
      // Stack traces show `sourceUrl`.
      return { format: 'module', source: stripTypeScriptTypes(content, { sourceUrl: withoutMark(url) }) };
    },
  });
  const outcome = await import(entry).catch((error: unknown) => error);
  isLinking = false;
  if (outcome !== 'linked') hooks.deregister();
  const useUnchanged = () => {
    unchanged = findUnchanged(modules, targets);
  };
  // Warms up the function: code takes several times as long on its first run.
  useUnchanged();
  return useUnchanged;
}

/** Returns the modules that are unchanged on disk and import only such modules. */
function findUnchanged(modules: Map<string, Module>, targets: Map<string, string>): Set<string> {
  const moved = new Set<string>();
  const found = new Map<string, Module>();
  for (const [file, target] of targets) {
    const module = modules.get(target);
    if (module?.state !== undefined && module.state === stateOf(file).state) found.set(target, module);
    else if (follow(file) !== target) moved.add(file);
    else if (module && isContent(target, module.content)) found.set(target, module);
  }
  for (let size = Infinity; size > found.size;) {
    size = found.size;
    for (const [url, { imports }] of found) {
      if (imports.some((file) => moved.has(file) || !found.has(targets.get(file)!))) found.delete(url);
    }
  }
  return new Set(found.keys());
}

/** Identifies a file and its last change. Reading the file, and following its path, takes several times as long. */
function stateOf(url: string): { state?: string; changedAt: number } {
  try {
    const { dev, ino, size, mtimeMs, ctimeMs } = statSync(fileURLToPath(url));
    return { state: [dev, ino, size, mtimeMs, ctimeMs].join(), changedAt: ctimeMs };
  } catch {
    return { changedAt: Infinity };
  }
}

function isContent(url: string, content: string): boolean {
  try {
    return readFileSync(fileURLToPath(url), 'utf8') === content;
  } catch {
    return false;
  }
}

/** Returns the URL of a file that is imported by its path; undefined for a package. */
function fileOf(specifier: string, parentURL: string): string | undefined {
  const isPath = /^(\.{0,2}\/|file:)/.test(specifier);
  return isPath
    ? URL.parse(specifier, parentURL.startsWith('file:') ? parentURL : undefined)?.href
    : undefined;
}

/**
 * Resolves symlinks on each call. Node does so only once for each path, and would miss a symlink that has changed.
 * Returns undefined if there is no file, or if the URL has a query or a fragment: then Node resolves it, and reports
 * the error if there is one.
 */
function follow(url: string): string | undefined {
  try {
    const path = fileURLToPath(url);
    const isPlain = statSync(path).isFile() && !/[?#]/.test(url);
    return isPlain ? pathToFileURL(realpathSync.native(path)).href : undefined;
  } catch {
    return undefined;
  }
}

function isSource(url: string): boolean {
  return url.startsWith('file:') && !url.includes('/node_modules/');
}

function withoutMark(url: string): string {
  return url.endsWith(mark) ? url.slice(0, -mark.length) : url;
}
