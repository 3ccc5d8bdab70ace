import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { parser } from '@prometheus-io/lezer-promql';
import { parse } from 'yaml';

/** What is under k8s/monitoring, and what its expressions ask for. */

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

/** The names of the cases that promtool runs, such as `ServiceAbsent fires`. */
export function readAlertCases(): string[] {
  const file = resolve(root, 'k8s/monitoring/alerts.test.yaml');
  return (parse(readFileSync(file, 'utf8')) as { tests: { name: string }[] }).tests.map(({ name }) => name);
}

export function readDashboard(): Dashboard {
  return JSON.parse(readFileSync(resolve(root, 'k8s/monitoring/dashboard.json'), 'utf8'));
}

/** How Prometheus labels what it scrapes. */
export function readRelabeling(): object[] {
  const { scrape_configs } = parse(readFileSync(resolve(root, 'k8s/monitoring/scrape.yaml'), 'utf8')) as {
    scrape_configs: { relabel_configs: object[] }[];
  };
  return scrape_configs.flatMap(({ relabel_configs }) => relabel_configs);
}

export function readRunbook(): string {
  return readFileSync(resolve(root, 'docs/runbook.md'), 'utf8');
}

/** What a variable of the dashboard takes its values from, such as `label_values(up, job)`. */
const labelValues = /^label_values\((.*), (\w+)\)$/;

/**
 * Each expression of the alerts and of the dashboard, with where it is, and Grafana's variables filled in.
 * @param jobs the services, which Grafana would find
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
    // As an expression that needs the same metric, with the same labels.
    ...variables.map(({ name, query }): [string, string] => [
      `variable ${name}`,
      query.replace(labelValues, 'count by ($2) ($1)'),
    ]),
  ];
}

/** Every metric of a scrape, by name: its samples' labels. */
export type Samples = Map<string, Record<string, string>[]>;

/** Adds what one target answered; `target` are the labels that Prometheus gives it. */
export function readScrape(samples: Samples, text: string, target: Record<string, string>): void {
  for (const line of text.split('\n').filter((each) => /^[a-z]/i.test(each))) {
    const [, name = '', labels = ''] = /^(\w+)(?:\{(.*)\})? \S+$/.exec(line) ?? [];
    const own = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, value]) => [key!, value!]);
    samples.set(name, [...(samples.get(name) ?? []), { ...Object.fromEntries(own), ...target }]);
  }
}

/** What an expression asks for that no sample has, and where it is no PromQL. */
export function findMissing(expr: string, samples: Samples): string[] {
  const missing: string[] = [];
  const selected = new Set<string>(['__name__']);
  const groupings: string[] = [];
  let metric = '';
  parser.parse(expr).iterate({
    enter({ node, type }) {
      const text = expr.slice(node.from, node.to);
      if (type.isError) missing.push(`no PromQL at ${node.from}`);
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

/** Whether the value is there: one that is left out has to be, too, as it would leave out nothing else. */
function hasValue(found: Record<string, string>[], label: string, operator: string, value: string): boolean {
  const values = new Set(found.map((labels) => labels[label]).filter((each) => each !== undefined));
  if (!operator.endsWith('~')) return values.has(value);
  // Each of `a|b` on its own.
  return value.split('|').every((part) => [...values].some((each) => new RegExp(`^(?:${part})$`).test(each)));
}
