import { execFileSync, spawnSync } from 'node:child_process';
import path from 'node:path';
import { expect, test } from 'vitest';
import { parseAllDocuments } from 'yaml';

/** Which login the nodes pull the images of the services with, overlay by overlay. */

const overlays = path.resolve(import.meta.dirname, '../kustomize/overlays');
const hasKustomize = spawnSync('kustomize', ['version']).status === 0;

interface Manifest {
  kind: string;
  metadata: { name: string; namespace: string };
  imagePullSecrets?: { name: string }[];
  spec?: { template?: { spec?: { serviceAccountName?: string; imagePullSecrets?: object[] } } };
}

/** The names of the pull secrets that the account of each Deployment has, by Deployment. */
function pullSecrets(overlay: string): Record<string, string[] | undefined> {
  const text = execFileSync('kustomize', ['build', path.join(overlays, overlay)], { encoding: 'utf8' });
  const manifests = parseAllDocuments(text).map((document) => document.toJS() as Manifest);
  const deployments = manifests.filter(({ kind }) => kind === 'Deployment');
  expect(deployments).toHaveLength(2);
  return Object.fromEntries(
    deployments.map(({ metadata, spec }) => {
      const pod = spec?.template?.spec;
      // Its own would be used in place of the account's.
      expect(pod?.imagePullSecrets).toBeUndefined();
      const account = manifests.find(
        ({ kind, metadata: { name, namespace } }) =>
          kind === 'ServiceAccount' && name === pod?.serviceAccountName && namespace === metadata.namespace,
      );
      expect(account, `the account of ${metadata.name}`).toBeDefined();
      return [metadata.name, account?.imagePullSecrets?.map(({ name }) => name)];
    }),
  );
}

test.skipIf(!hasKustomize)('production pulls each image with the login of its account', () => {
  expect(pullSecrets('prod')).toEqual({ 'invoice-app': ['registry'], 'payment-provider': ['registry'] });
});

test.skipIf(!hasKustomize).each(['dev', 'flaky', 'prod-local'])('%s asks for no login', (overlay) => {
  expect(pullSecrets(overlay)).toEqual({ 'invoice-app': undefined, 'payment-provider': undefined });
});
