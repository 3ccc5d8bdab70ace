// The lower bound for every way of reloading: each answer is the current content of a file.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';

const file = join(import.meta.dirname, 'served/code.txt');

createServer((_request, response) => {
  try {
    response.end(readFileSync(file));
  } catch {
    // The file is being replaced.
    response.writeHead(503).end();
  }
}).listen(8084);
process.on('SIGTERM', () => process.exit());
