import { execFile } from 'node:child_process';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { readServices } from '../../scripts/services.ts';
import { overlay, runScript } from './cluster.ts';

const run = promisify(execFile);
const root = resolve(import.meta.dirname, '../..');

test('no production manifest opens an inspector', async () => {
  const { stdout } = await run('kustomize', ['build', join(root, 'kustomize/overlays/prod')]);
  expect(stdout).toContain('kind: Deployment');
  expect(stdout).not.toMatch(/inspect/i);
});

test('Tilt refuses --debug with a production overlay', async () => {
  const args = ['alpha', 'tiltfile-result', '--', '--overlay=prod', '--debug'];
  const output = await run('tilt', args, { cwd: root }).then(
    ({ stdout }) => stdout,
    ({ stdout, stderr }: { stdout: string; stderr: string }) => stdout + stderr,
  );
  expect(output).toContain('--debug is for development, --overlay=prod is not');
});

/** Reports the files of a production container, and the ports that are open in it 2 s after SIGUSR1. */
const probe = `
  const { readdirSync, readFileSync } = process.getBuiltinModule('node:fs');
  const listening = () => ['tcp', 'tcp6']
    .flatMap((table) => readFileSync('/proc/net/' + table, 'utf8').split('\\n').slice(1))
    .map((line) => line.trim().split(/\\s+/))
    .filter(([, , , state]) => state === '0A')
    .map(([, address]) => parseInt(address.split(':')[1], 16));
  process.kill(1, 'SIGUSR1');
  setTimeout(() => console.log(JSON.stringify({ files: readdirSync('/app'), ports: listening() })), 2_000);`;

describe.runIf(overlay === 'prod')('in production', () => {
  test.each(readServices())('$name has no inspector, and no signal opens one', async ({ name, port }) => {
    const { files, ports } = JSON.parse(await runScript(name, probe));
    const page = name === 'invoice-app' ? ['page'] : [];
    expect(files.toSorted()).toEqual(['main.js', 'main.js.map', ...page]);
    expect(ports).toContain(port);
    // Node's default inspector port.
    expect(ports).not.toContain(9229);
  });
});
