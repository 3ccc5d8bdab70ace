import { list } from './api.ts';
import { overlay, url } from './cluster.ts';
import { closedNamespaces, readFlows } from './flows.ts';

/** The matrix of flows.ts for the current cluster. */

export const nodes = (await list('/api/v1/nodes')).length;

export const closed = closedNamespaces(overlay);

const all = readFlows(overlay, url);
/** A node accepts all traffic of its own pods, so flows to these targets need a pod on another node. */
const ofNodes = new Set(['api-server', 'kubelet']);
export const flows = all.filter(({ to }) => nodes > 1 || !ofNodes.has(to));

/** The policies that have no flow in this cluster because it has only one node. */
export const notShown = all
  .flatMap(({ by }) => by)
  .filter((policy) => !flows.some(({ by }) => by.includes(policy)));
