import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { parser } from '@prometheus-io/lezer-promql';
import { parse } from 'yaml';

/** Reads the files of k8s/monitoring, and checks their expressions against scraped samples. */

export interface Alert {
  alert: string;
  expr: string;
  for?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
}

export interface Panel {
  id: number;
  type: string;
  title: string;
  gridPos: { x: number; y: number; w: number; h: number };
  fieldConfig?: { defaults: { unit?: string } };
  targets?: { expr: string }[];
}

export interface Dashboard {
  templating: { list: { name: string; type: string; query: string }[] };
  annotations: { list: { expr: string }[] };
  panels: Panel[];
}

const root = resolve(import.meta.dirname, '../..');
export const alertsFile = resolve(root, 'k8s/monitoring/alerts.yaml');

export function readAlerts(): Alert[] {
  const { groups } = parse(readFileSync(alertsFile, 'utf8')) as { groups: { rules: Alert[] }[] };
  return groups.flatMap(({ rules }) => rules);
}

/** Returns the names of the promtool test cases, such as `ServiceAbsent fires`. */
export function readAlertCases(): string[] {
  const file = resolve(root, 'k8s/monitoring/alerts.test.yaml');
  return (parse(readFileSync(file, 'utf8')) as { tests: { name: string }[] }).tests.map(({ name }) => name);
}

export function readDashboard(): Dashboard {
  return JSON.parse(readFileSync(resolve(root, 'k8s/monitoring/dashboard.json'), 'utf8'));
}

/** Returns the relabeling rules of the scrape configuration. */
export function readRelabeling(): object[] {
  const { scrape_configs } = parse(readFileSync(resolve(root, 'k8s/monitoring/scrape.yaml'), 'utf8')) as {
    scrape_configs: { relabel_configs: object[] }[];
  };
  return scrape_configs.flatMap(({ relabel_configs }) => relabel_configs);
}

export function readRunbook(): string {
  return readFileSync(resolve(root, 'docs/runbook.md'), 'utf8');
}

/** Matches the query of a dashboard variable, such as `label_values(up, job)`. */
const labelValues = /^label_values\((.*), (\w+)\)$/;

/**
 * Returns each expression of the alerts and the dashboard, with its location, and with Grafana's variables filled in.
 * @param jobs the services that Grafana would find
 */
export function readExpressions(jobs: string[]): [where: string, expr: string][] {
  const { panels, annotations, templating } = readDashboard();
  const variables = templating.list.filter(({ type }) => type === 'query');
  const values = new Map(variables.map(({ name }) => [name, jobs.join('|')]));
  const fill = (expr: string) =>
    expr
      .replaceAll('$__rate_interval', '5m')
      .replaceAll(/\$(\w+)/g, (all, name: string) => values.get(name) ?? all);
  return [
    ...readAlerts().map(({ alert, expr }): [string, string] => [alert, expr]),
    ...panels.flatMap(({ title, targets = [] }) =>
      targets.map(({ expr }): [string, string] => [`panel ${title}`, fill(expr)]),
    ),
    ...annotations.list.map(({ expr }): [string, string] => ['annotation', fill(expr)]),
    // Turned into an expression that needs the same metric and labels.
    ...variables.map(({ name, query }): [string, string] => [
      `variable ${name}`,
      query.replace(labelValues, 'count by ($2) ($1)'),
    ]),
  ];
}

/** The labels of every scraped sample, by metric name. */
export type Samples = Map<string, Record<string, string>[]>;

/** Adds the samples that one target returned, with the labels that Prometheus gives that target. */
export function readScrape(samples: Samples, text: string, target: Record<string, string>): void {
  for (const line of text.split('\n').filter((each) => /^[a-z]/i.test(each))) {
    const [, name = '', labels = ''] = /^(\w+)(?:\{(.*)\})? \S+$/.exec(line) ?? [];
    const own = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, value]) => [key!, value!]);
    samples.set(name, [...(samples.get(name) ?? []), { ...Object.fromEntries(own), ...target }]);
  }
}

/** Returns the metrics and labels of an expression that no sample has, and the positions of syntax errors. */
export function findMissing(expr: string, samples: Samples): string[] {
  const missing: string[] = [];
  const selected = new Set<string>(['__name__']);
  const groupings: string[] = [];
  let metric = '';
  parser.parse(expr).iterate({
    enter({ node, type }) {
      const text = expr.slice(node.from, node.to);
      if (type.isError) missing.push(`invalid PromQL at ${node.from}`);
      else if (type.name === 'VectorSelector') {
        metric = expr.slice(node.firstChild!.from, node.firstChild!.to);
        const found = samples.get(metric) ?? [];
        if (found.length === 0) missing.push(metric);
        for (const label of found.flatMap((labels) => Object.keys(labels))) selected.add(label);
      } else if (type.name === 'UnquotedLabelMatcher' && samples.has(metric)) {
        const [, label = '', operator = '', value = ''] = /^(\w+)\s*(=~|!~|!=|=)\s*"(.*)"$/.exec(text) ?? [];
        if (!hasValue(samples.get(metric)!, label, operator, value)) missing.push(`${metric}{${text}}`);
      } else if (type.name === 'LabelName' && node.parent?.name === 'GroupingLabels') groupings.push(text);
    },
  });
  return [
    ...missing,
    ...groupings.filter((label) => !selected.has(label)).map((label) => `the label ${label}`),
  ];
}

/** Returns whether a sample has the value. An excluded value must exist too, otherwise the matcher has no effect. */
function hasValue(found: Record<string, string>[], label: string, operator: string, value: string): boolean {
  const values = new Set(found.map((labels) => labels[label]).filter((each) => each !== undefined));
  if (!operator.endsWith('~')) return values.has(value);
  // Each alternative of `a|b` must exist.
  return value.split('|').every((part) => [...values].some((each) => new RegExp(`^(?:${part})$`).test(each)));
}
