import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { expect, test } from 'vitest';
import { freePort, whyTaken } from './ports.ts';

test('reports nothing for a free port', async () => {
  expect(await whyTaken('SOME_PORT', await freePort())).toBeUndefined();
});

test.for(['127.0.0.1', '::1', '::'])('names the owner of a port on %s in one line', async (host) => {
  const port = await freePort();
  const script = `require('net').createServer().listen(${port}, '${host}', () => console.log('listening'))`;
  // As long as the path of a file in a home folder, followed by the name of a service.
  const last = `${'/home/runner/work/'.repeat(8)}main.ts`;
  const owner = spawn('node', ['-e', script, last, 'service'], { stdio: ['ignore', 'pipe', 'inherit'] });
  try {
    await once(owner.stdout, 'data');
    const why = await whyTaken('SOME_PORT', port);
    expect(why).toContain(`port ${port} is in use by process ${owner.pid} (node -e require('net')`);
    expect(why).toMatch(/work\/main\.ts service\): stop it, or set SOME_PORT to a free port$/);
    expect(why).not.toContain('\n');
  } finally {
    owner.kill();
  }
});
