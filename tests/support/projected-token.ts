import { mkdirSync, mkdtempSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A token file as the kubelet projects it: a link through a folder link that each update replaces atomically. */
export class ProjectedToken {
  readonly #folder = mkdtempSync(join(tmpdir(), 'payloop-token-'));
  /** The value for TOKEN_FILE. The file is missing until the first `put`. */
  readonly file = join(this.#folder, 'token');
  #puts = 0;

  put(token: string): void {
    const [last, next] = [`..${this.#puts}`, `..${this.#puts + 1}`];
    this.#puts += 1;
    mkdirSync(join(this.#folder, next));
    writeFileSync(join(this.#folder, next, 'token'), token);
    symlinkSync(next, join(this.#folder, '..data_tmp'));
    renameSync(join(this.#folder, '..data_tmp'), join(this.#folder, '..data'));
    if (this.#puts === 1) symlinkSync('..data/token', this.file);
    rmSync(join(this.#folder, last), { recursive: true, force: true });
  }

  [Symbol.dispose](): void {
    rmSync(this.#folder, { recursive: true });
  }
}
