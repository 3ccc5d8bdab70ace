import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { freePort } from '../../local/ports.ts';

export interface Prometheus {
  /** Calls its HTTP API at a path such as `query`. @throws {Error} with the error that Prometheus reports */
  get(path: string, parameters?: Record<string, string>): Promise<unknown>;
  stop(): Promise<void>;
}

export function hasPrometheus(): boolean {
  try {
    execFileSync('prometheus', ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** A port of a pod, as Prometheus discovers it in a cluster. */
export interface Target {
  /** Host and port. */
  address: string;
  /** Discovery labels such as `__meta_kubernetes_pod_container_port_name`. */
  labels: Record<string, string>;
}

/** Starts a real Prometheus that scrapes once a second and relabels as in a cluster. */
export async function startPrometheus(
  targets: Target[],
  relabeling: object[],
  ruleFile: string,
): Promise<Prometheus> {
  const folder = mkdtempSync(join(tmpdir(), 'payloop-prometheus-'));
  const scrape = {
    job_name: 'payloop',
    static_configs: targets.map(({ address, labels }) => ({ targets: [address], labels })),
    relabel_configs: relabeling,
  };
  // Written as JSON, which is valid YAML.
  const config = {
    global: { scrape_interval: '1s', evaluation_interval: '1s' },
    rule_files: [ruleFile],
    scrape_configs: [scrape],
  };
  writeFileSync(join(folder, 'prometheus.yml'), JSON.stringify(config));
  const address = `127.0.0.1:${await freePort()}`;
  const child = spawn(
    'prometheus',
    [
      `--config.file=${join(folder, 'prometheus.yml')}`,
      `--storage.tsdb.path=${join(folder, 'data')}`,
      `--web.listen-address=${address}`,
      '--enable-feature=exemplar-storage',
      '--log.level=error',
    ],
    { stdio: ['ignore', 'ignore', 'inherit'] },
  );
  const ended = once(child, 'exit');
  const isReady = () =>
    fetch(`http://${address}/-/ready`).then(
      ({ ok }) => ok,
      () => false,
    );
  while (!(await isReady())) await sleep(50);
  return {
    async get(path, parameters = {}) {
      const query = new URLSearchParams(parameters).toString();
      const response = await fetch(`http://${address}/api/v1/${path}?${query}`);
      const { data, error } = (await response.json()) as { data: unknown; error?: string };
      if (error !== undefined) throw new Error(error);
      return data;
    },
    async stop() {
      child.kill('SIGKILL');
      await ended;
      rmSync(folder, { recursive: true });
    },
  };
}
