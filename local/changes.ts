// What `make up` does not take up while it runs.
import { createHash } from 'node:crypto';
import { globSync, readFileSync } from 'node:fs';
import path from 'node:path';

/** Files that the processes of `make up` have read and do not read again, and what to do when one changes. */
const needed = [
  {
    files: ['package.json', 'package-lock.json', '{services,libraries}/*/package.json', 'local/package.json'],
    why: 'it installs what changed',
  },
  {
    files: [
      'libraries/chassis/dev/*',
      'local/*.ts',
      'local/*.sh',
      'scripts/services.ts',
      'Makefile',
      'kustomize/**/*.yaml',
      'services/*/deploy/*.yaml',
    ],
    why: 'nothing takes it up before',
  },
];
/** How often they are looked at, in milliseconds. */
const interval = 1_000;

/**
 * Says which of these files differ from what they were at the start, each once a change.
 * @param root the folder of the repository
 * @returns what ends it
 */
export function watchForRestart(root: string, say: (text: string) => void): () => void {
  const before = read(root);
  let last = before;
  const look = () => {
    const now = read(root);
    for (const file of new Set([...now.keys(), ...last.keys()])) {
      const hash = now.get(file);
      if (hash === last.get(file) || hash === before.get(file)) continue;
      const { why } = needed.find(({ files }) => files.some((pattern) => path.matchesGlob(file, pattern)))!;
      say(`${file} has changed: end make up (Ctrl-C) and start it again, ${why}`);
    }
    last = now;
  };
  const timer = setInterval(look, interval);
  return () => clearInterval(timer);
}

/** The hash of each file by its path; a file that is away has none. */
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
