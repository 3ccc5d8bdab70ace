import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/**
 * Identifies the code of a service: a SHA-256 (hex) over the `*.ts` files of the kit and the service, tests
 * left out, as `sha256sum` prints them in C-locale path order. test.sh computes the same from the working
 * tree, to know that a test ran against the code in it.
 * @param root the folder that holds `services`
 * @throws {Error} the file system's, when a folder or file cannot be read
 */
export function hashSource(root: string, service: string): string {
  const lines = ['services/kit/src', `services/${service}/src`]
    .flatMap((folder) =>
      readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' }).map(
        (name) => `${folder}/${name}`,
      ),
    )
    .filter((path) => path.endsWith('.ts') && !path.endsWith('.test.ts'))
    .toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
    .map((path) => `${sha256(readFileSync(join(root, path)))}  ${path}\n`);
  return sha256(lines.join(''));
}

function sha256(data: string | Buffer): string {
  return createHash('sha256').update(data).digest('hex');
}
