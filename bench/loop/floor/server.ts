// What no way of reloading can be faster than: each answer is the file as it is now.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';

const file = join(import.meta.dirname, 'served/code.txt');

createServer((_request, response) => {
  try {
    response.end(readFileSync(file));
  } catch {
    // It is being replaced.
    response.writeHead(503).end();
  }
}).listen(8084);
process.on('SIGTERM', () => process.exit());
