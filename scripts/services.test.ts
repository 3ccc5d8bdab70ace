import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { beforeEach, expect, onTestFinished, test } from 'vitest';
import { removeAddedServices } from '../tests/support/tree.ts';
import { databaseOf, inspectPortOf, readServices, variablePrefix } from './services.ts';

const root = path.resolve(import.meta.dirname, '..');
const base = 'kustomize/base/kustomization.yaml';
let folder: string;
let list: string;

beforeEach(async () => {
  folder = mkdtempSync(path.join(os.tmpdir(), 'payloop-services-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  for (const file of [base, 'test.sh', 'services'])
    cpSync(path.join(root, file), path.join(folder, file), { recursive: true });
  await removeAddedServices(folder);
  list = readFileSync(path.join(folder, base), 'utf8');
});

/** Adds a service: its folder, and its line in the list. */
function add(
  line = '  - ../../services/refunds/deploy\n',
  data = "name: refunds, port: '8083', release: 0.1.0",
) {
  mkdirSync(path.join(folder, 'services/refunds/deploy'), { recursive: true });
  writeFileSync(path.join(folder, 'services/refunds/deploy/service.yaml'), `data: { ${data} }\n`);
  writeFileSync(path.join(folder, base), `${list}${line}`);
}

test('reads a service from its folder and its line in the list', () => {
  const before = readServices(folder);
  expect(before.map(({ name }) => name)).toEqual(['invoice-app', 'payment-provider']);
  add();
  const refunds = { name: 'refunds', port: 8083, release: '0.1.0' };
  expect(readServices(folder)).toEqual([...before, refunds]);
  expect([databaseOf(refunds), variablePrefix(refunds), inspectPortOf(refunds)]).toEqual([
    'refunds',
    'REFUNDS',
    9231,
  ]);
});

test('joins the words of a name as Postgres and shells require', () => {
  const service = { name: 'payment-provider', port: 8082, release: '1.0.0' };
  expect([databaseOf(service), variablePrefix(service)]).toEqual(['payment_provider', 'PAYMENT_PROVIDER']);
});

test.each([
  ['  - ../../services/refunds/namespace\n', undefined, `${base}: ../../services/refunds/namespace is not `],
  [undefined, "name: refund, port: '8083'", 'deploy/service.yaml: data.name must be refunds, not refund'],
  [undefined, 'name: refunds', 'deploy/service.yaml: data.port must be a port, 1 to 65535, not undefined'],
  [undefined, "name: refunds, port: '70000'", 'data.port must be a port, 1 to 65535, not 70000'],
])('rejects %j with %j, and names the file', (line, data, message) => {
  add(line, data);
  expect(() => readServices(folder)).toThrow(message);
});

test.each([
  '  - ../../services/refunds/deploy # new\n',
  '  - "../../services/refunds/deploy"\n  # - ../../services/gone/deploy\n',
])('test.sh reads the same list, with %j', (line) => {
  add(line);
  const script = `eval "$(grep '^list_services()' test.sh)"; list_services`;
  const names = execFileSync('bash', ['-c', script], { cwd: folder, encoding: 'utf8' });
  expect(names.trim().split('\n')).toEqual(readServices(folder).map(({ name }) => name));
});
