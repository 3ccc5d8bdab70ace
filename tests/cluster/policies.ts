import { kubectl, overlay, url } from './cluster.ts';
import { closedNamespaces, readFlows } from './flows.ts';

/** The matrix of flows.ts for the cluster that is there. */

export const nodes = (await kubectl('get', 'nodes', '--output=name')).trim().split('\n').length;

export const closed = closedNamespaces(overlay);

const all = readFlows(overlay, url);
/** Nodes let their own pods through, so these show something only when the pod is on another node. */
const ofNodes = new Set(['api-server', 'kubelet']);
export const flows = all.filter(({ to }) => nodes > 1 || !ofNodes.has(to));

/** The policies that a cluster with one node has no flow for. */
export const notShown = all
  .flatMap(({ by }) => by)
  .filter((policy) => !flows.some(({ by }) => by.includes(policy)));
