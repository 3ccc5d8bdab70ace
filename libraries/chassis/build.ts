// Bundles one service into dist/<service>/main.js, with the hash of its sources baked in, and puts its page beside it.
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
  // Not ESM: Express and pg call require() of Node's own modules, which an ESM bundle cannot.
  format: 'cjs',
  minify: true,
  keepNames: true,
  sourcemap: 'linked',
  define: { BUNDLED_SOURCE: JSON.stringify(hashSource(root, service)) },
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
