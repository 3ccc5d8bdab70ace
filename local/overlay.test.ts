import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { stringify } from 'yaml';
import { OverlayError, readAddresses, readOverlay } from './overlay.ts';

test('reads the variables of flaky from its component, by service', () => {
  expect(readOverlay('flaky')).toEqual({
    'payment-provider': {
      FAILURE_RATE: expect.stringMatching(/^0\.\d+$/),
      FAULTS: expect.stringContaining('fail='),
      FAULT_SEED: expect.any(String),
    },
    'invoice-app': { SEED_INVOICES: expect.stringMatching(/^\d+$/) },
  });
});

test('dev sets no variables', () => {
  expect(readOverlay('dev')).toEqual({});
});

test.each(['prod', 'prod-local', 'nonsense', '', '../overlays/flaky'])('rejects %j in one line', (name) => {
  expect(() => readOverlay(name)).toThrow(
    new OverlayError(
      `OVERLAY=${name} does not work with local processes: use dev or flaky, or set MODE=cluster`,
    ),
  );
});

const variable = { name: 'SEED_INVOICES', value: '9' };
const deployment = (name: string, env: unknown[], others = {}) => ({
  apiVersion: 'apps/v1',
  kind: 'Deployment',
  metadata: { name },
  spec: { template: { spec: { containers: [{ name: 'app', env }] } }, ...others },
});
const inline = (value: unknown, others = {}) => ({ patch: stringify(value), ...others });
const target = { kind: 'Deployment', name: 'invoice-app' };

/** Reads overlay `mine`: dev plus a component with these fields. */
function readMine(component: object) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'payloop-overlay-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const kustomizations = {
    'overlays/mine': { resources: ['../dev'], components: ['../../components/mine'] },
    'components/mine': { kind: 'Component', ...component },
  };
  for (const [at, kustomization] of Object.entries(kustomizations)) {
    mkdirSync(path.join(folder, 'kustomize', at), { recursive: true });
    writeFileSync(path.join(folder, 'kustomize', at, 'kustomization.yaml'), stringify(kustomization));
  }
  mkdirSync(path.join(folder, 'kustomize/overlays/dev'));
  return readOverlay('mine', folder);
}

test.each([{}, { target }])('reads the variables of a component, with %j', (others) => {
  const patches = [inline(deployment('invoice-app', [variable]), others)];
  expect(readMine({ patches })).toEqual({ 'invoice-app': { SEED_INVOICES: '9' } });
});

test.each<[string, object]>([
  ['images', { images: [{ name: 'invoice-app', newTag: '2' }] }],
  ['replicas too', { patches: [inline(deployment('invoice-app', [variable], { replicas: 2 }))] }],
  ['only replicas', { patches: [inline({ ...deployment('invoice-app', []), spec: { replicas: 2 } })] }],
  [
    'only volumes',
    {
      patches: [inline({ ...deployment('invoice-app', []), spec: { template: { spec: { volumes: [] } } } })],
    },
  ],
  ['another object', { patches: [inline({ kind: 'Service', metadata: { name: 'invoice-app' } })] }],
  [
    'every Deployment',
    { patches: [inline(deployment('any', [variable]), { target: { kind: 'Deployment' } })] },
  ],
  [
    'what another target selects',
    { patches: [inline(deployment('invoice-app', [variable]), { target: { ...target, name: '.*' } })] },
  ],
  [
    'a value from elsewhere',
    { patches: [inline(deployment('invoice-app', [{ name: 'NODE', valueFrom: { fieldRef: {} } }]))] },
  ],
  ['two objects with one patch', { patches: [{ patch: 'kind: Service\n---\nkind: Service\n' }] }],
  ['nothing, with an empty patch', { patches: [{ patch: '' }] }],
  ['what is in a missing file', { patches: [{ path: 'missing.yaml' }] }],
  ['a JSON patch', { patches: [{ patch: '- op: remove\n  path: /spec/replicas\n', target }] }],
])('rejects an overlay whose component changes %s', (_name, component) => {
  expect(() => readMine(component)).toThrow(
    new OverlayError('OVERLAY=mine does not work with local processes: use dev, or set MODE=cluster'),
  );
});

const services = [
  { name: 'shop', port: 8081, localPort: 18_081 },
  { name: 'bank-a', port: 8082, localPort: 18_082 },
  { name: 'refunds', port: 8083, localPort: 18_083 },
];

/** Reads the addresses of a service that sets these variables in its folder, inline or in a file. */
function addresses(variables: Record<string, string>, isInline = false): Record<string, string> {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'payloop-overlay-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const deploy = path.join(folder, 'services/shop/deploy');
  mkdirSync(deploy, { recursive: true });
  const env = Object.entries(variables).map(([name, value]) => ({ name, value }));
  const patch = stringify({
    kind: 'Deployment',
    spec: {
      template: {
        spec: { containers: [{ name: 'app', env: [...env, { name: 'NODE', valueFrom: { fieldRef: {} } }] }] },
      },
    },
  });
  writeFileSync(path.join(deploy, 'deployment.yaml'), patch);
  const patches = [
    isInline ? { patch } : { path: 'deployment.yaml' },
    { patch: stringify({ kind: 'Deployment', spec: { replicas: 2 } }) },
    { patch: '- op: remove\n  path: /metadata/labels\n' },
  ];
  writeFileSync(path.join(deploy, 'kustomization.yaml'), stringify({ patches }));
  return readAddresses('shop', services, folder);
}

test.each([true, false])('translates addresses of other services to this machine, inline: %s', (isInline) => {
  const variables = {
    BANK_URL: 'http://bank-a.bank-a:8082/payments/pay?a=http://bank-a.bank-a:8082/',
    REFUNDS_URL: 'http://refunds.refunds:8083',
    TOKEN_FILE: '/run/secrets/identity/token',
    STRANGER_URL: 'http://stranger.stranger:8082/',
    OTHER_NAMESPACE: 'http://refunds.shop:8083/',
    LONGER_PORT: 'http://refunds.refunds:8083x',
    AUTH: 'required',
  };
  expect(addresses(variables, isInline)).toEqual({
    BANK_URL: 'http://127.0.0.1:18082/payments/pay?a=http://bank-a.bank-a:8082/',
    REFUNDS_URL: 'http://127.0.0.1:18083',
  });
});

test('rejects an address with the wrong port in one line', () => {
  expect(() => addresses({ REFUNDS_URL: 'http://refunds.refunds:8082/' })).toThrow(
    new OverlayError('services/shop/deploy: REFUNDS_URL has port 8082 for refunds, which listens on 8083'),
  );
});

test('gives invoice-app the address of payment-provider on this machine, and payment-provider none', () => {
  const real = [{ name: 'payment-provider', port: 8082, localPort: 9 }];
  expect(readAddresses('invoice-app', real)).toEqual({
    PAYMENT_PROVIDER_URL: 'http://127.0.0.1:9/payments/pay',
  });
  expect(readAddresses('payment-provider', real)).toEqual({});
});
