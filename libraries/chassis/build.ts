// Bundles one service into dist/<service>/main.js, embeds the hash of its sources, and copies its page next to it.
//   node libraries/chassis/build.ts <service>
import { cpSync, existsSync } from 'node:fs';
import { extname, join, resolve } from 'node:path';
import { build } from 'esbuild';
import { hashSource } from './src/source.ts';

const root = resolve(import.meta.dirname, '../..');
const [service = ''] = process.argv.slice(2);

await build({
  absWorkingDir: root,
  entryPoints: [`services/${service}/src/main.ts`],
  outfile: `dist/${service}/main.js`,
  bundle: true,
  platform: 'node',
  target: 'node24',
  // Not ESM: Express and pg load Node's built-in modules with require(), which an ESM bundle lacks.
  format: 'cjs',
  minify: true,
  keepNames: true,
  sourcemap: 'linked',
  define: { KNOWN_SOURCE: JSON.stringify(hashSource(root, service)) },
  // Optional parts of pg that are not installed.
  external: ['pg-native', 'pg-cloudflare'],
  logLevel: 'warning',
  logOverride: { 'empty-import-meta': 'silent' },
});

const page = join(root, 'services', service, 'src/page');
if (existsSync(page)) {
  const filter = (path: string) => extname(path) !== '.json';
  cpSync(page, join(root, 'dist', service, 'page'), { recursive: true, filter });
}
