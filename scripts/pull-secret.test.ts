import { execFileSync, spawnSync } from 'node:child_process';
import path from 'node:path';
import { expect, test } from 'vitest';
import { parseAllDocuments } from 'yaml';
import { readServices } from './services.ts';

/** Checks the login with which nodes pull the images of the services, for each overlay. */

const overlays = path.resolve(import.meta.dirname, '../kustomize/overlays');
const hasKustomize = spawnSync('kustomize', ['version']).status === 0;

interface Manifest {
  kind: string;
  metadata: { name: string; namespace: string };
  imagePullSecrets?: { name: string }[];
  spec?: { template?: { spec?: { serviceAccountName?: string; imagePullSecrets?: object[] } } };
}

/** Returns the names of the pull secrets of each Deployment's service account, by Deployment. */
function pullSecrets(overlay: string): Record<string, string[] | undefined> {
  const text = execFileSync('kustomize', ['build', path.join(overlays, overlay)], { encoding: 'utf8' });
  const manifests = parseAllDocuments(text).map((document) => document.toJS() as Manifest);
  const deployments = manifests.filter(({ kind }) => kind === 'Deployment');
  return Object.fromEntries(
    deployments.map(({ metadata, spec }) => {
      const pod = spec?.template?.spec;
      // A pod's own pull secrets would replace those of its account.
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

/** Maps every service to the same secrets. */
const each = (secrets: string[] | undefined) =>
  Object.fromEntries(readServices().map(({ name }) => [name, secrets]));

test.skipIf(!hasKustomize)("production pulls each image with its service account's login", () => {
  expect(pullSecrets('prod')).toStrictEqual(each(['registry']));
});

test.skipIf(!hasKustomize).each(['dev', 'flaky', 'prod-local'])(
  '%s pulls images without a login',
  (overlay) => {
    expect(pullSecrets(overlay)).toStrictEqual(each(undefined));
  },
);
