// Reports changes that `make up` applies only at its next start.
import { createHash } from 'node:crypto';
import { globSync, readFileSync } from 'node:fs';
import path from 'node:path';

/** Files that `make up` reads only at its start, and why it has to be restarted when one changes. */
const needed = [
  {
    files: ['package.json', 'package-lock.json', '{services,libraries}/*/package.json', 'local/package.json'],
    why: 'to install the packages',
  },
  {
    files: [
      'libraries/chassis/dev/*',
      // The gateway imports it.
      'libraries/chassis/src/source.ts',
      'local/*.ts',
      'local/*.sh',
      'scripts/services.ts',
      'Makefile',
      'kustomize/**/*.yaml',
      'services/*/deploy/*.yaml',
    ],
    why: 'to apply the change',
  },
];
/** The time between two polls, in milliseconds. */
const interval = 1_000;

/**
 * Reports each change of these files once, unless it restores the file to its state at the start.
 * @param root the folder of the repository
 * @returns a function that stops the polling
 */
export function watchForRestart(root: string, say: (text: string) => void): () => void {
  const before = read(root);
  let last = before;
  const poll = () => {
    const now = read(root);
    for (const file of new Set([...now.keys(), ...last.keys()])) {
      const hash = now.get(file);
      if (hash === last.get(file) || hash === before.get(file)) continue;
      const { why } = needed.find(({ files }) => files.some((pattern) => path.matchesGlob(file, pattern)))!;
      say(`${file} has changed: stop make up (Ctrl-C) and start it again ${why}`);
    }
    last = now;
  };
  const timer = setInterval(poll, interval);
  return () => clearInterval(timer);
}

/** The hash of each file by its path, without the missing files. */
function read(root: string): Map<string, string> {
  const found = globSync(
    needed.flatMap(({ files }) => files),
    { cwd: root },
  ).filter((file) => !file.endsWith('.test.ts') && !path.basename(file).startsWith('.'));
  return new Map(found.flatMap((file) => fingerprint(root, file)));
}

function fingerprint(root: string, file: string): [string, string][] {
  try {
    return [
      [
        file,
        createHash('sha256')
          .update(readFileSync(path.join(root, file)))
          .digest('hex'),
      ],
    ];
  } catch {
    return [];
  }
}
