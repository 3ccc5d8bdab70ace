// Checks that the commands, links and paths in all Markdown pages exist, and that figures name how they were measured.
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { describe, expect, test } from 'vitest';
import { projectFiles } from '../tests/support/tree.ts';

const root = resolve(import.meta.dirname, '..');
const read = (file: string) => readFileSync(join(root, file), 'utf8');
const pages = [...projectFiles()].filter((file) => file.endsWith('.md'));

const makefile = read('Makefile');
const targets = new Set([
  ...[...makefile.matchAll(/^([a-z-]+):/gm)].map(([, target]) => target!),
  .../^PARTS := (.*)$/m.exec(makefile)![1]!.split(' '),
]);
const scripts = new Set(Object.keys(JSON.parse(read('package.json')).scripts));

/** The code of a page: its fenced and indented blocks, and the text between backticks. */
function codeOf(page: string): string[] {
  const code = page.matchAll(/```\w*\n(.*?)```|(?<=\n\n)((?: {4}[^\n]*\n)+)|`([^`\n]+)`/gs);
  return [...code].map(([, fenced, indented, inline]) => fenced ?? indented ?? inline!);
}

/** The anchors of a page's headings, by GitHub's rule. */
function anchorsOf(page: string): string[] {
  return [...page.matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
    heading!
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  );
}

test('there are pages to check', () => {
  expect(pages).toContain('README.md');
  expect(pages.length).toBeGreaterThan(10);
});

test('the README has at most 150 lines', () => {
  expect(read('README.md').trimEnd().split('\n').length).toBeLessThanOrEqual(150);
});

describe.each(pages)('%s', (file) => {
  const page = read(file);

  test('relative links resolve', () => {
    const prose = page.replaceAll(/```.*?```/gs, '');
    const links = [
      ...prose.matchAll(/\]\((?!https?:|mailto:)([^)\s]+)\)|<img[^>]* src="(?!https?:)([^"]+)"/g),
    ];
    const broken = links
      .map(([, link, image]) => (link ?? image)!)
      .filter((link) => {
        const [path, anchor] = link.split('#');
        const target = path === '' ? file : join(dirname(file), path!);
        if (!existsSync(join(root, target))) return true;
        return anchor !== undefined && !anchorsOf(read(target)).includes(anchor);
      });
    expect(broken).toEqual([]);
  });

  test('commands exist', () => {
    const commands = codeOf(page).join('\n');
    const made = [...commands.matchAll(/(?<![\w-])make ((?:[A-Z_]+=\S+ )*)([a-z][a-z-]*)/g)].map(
      ([, , target]) => target!,
    );
    expect(made.filter((target) => !targets.has(target))).toEqual([]);
    const run = [...commands.matchAll(/(?:npm run|node --run) ([a-z-]+)/g)].map(([, script]) => script!);
    expect(run.filter((script) => !scripts.has(script))).toEqual([]);
    const built = [...commands.matchAll(/kustomize build ([\w./-]+)/g)].map(([, folder]) => folder!);
    expect(built.filter((folder) => !existsSync(join(root, folder)))).toEqual([]);
  });

  // Skips paths with a placeholder, and those of the example service.
  test('paths exist', () => {
    const top = /^(?:\.github|bench|docs|k8s|kustomize|libraries|local|scripts|services|tests)\/[\w./-]*$/;
    const paths = codeOf(page).filter((code) => top.test(code) && !/NAME|refunds|example/.test(code));
    const near = (path: string) => [join(root, path), join(root, dirname(file), path)].some(existsSync);
    expect(paths.filter((path) => !near(path))).toEqual([]);
  });
});

const figure = /(?<![\w.-])\d[\d,.]*(?: |\u00a0)?(?:ms|µs|s|seconds|minutes|min|MB|invoices a second)\b/;
const command = /`(?:[A-Z]+=\S+ )*(?:make|node|npm|\.\/|kustomize|docker|scripts\/)[^`]*`/;

test('each section with figures names the command that measures them', () => {
  const sections = read('docs/figures.md').split(/^(?=## )/m);
  const unmeasured = sections.filter((section) => figure.test(section) && !command.test(section));
  expect(unmeasured.map((section) => section.split('\n')[0])).toEqual([]);
});

test('each paragraph of the README with a figure names a command or the page of figures', () => {
  const paragraphs = read('README.md').split(/\n\s*\n/);
  const isMeasured = (each: string) => command.test(each) || each.includes('docs/figures.md');
  const loose = paragraphs.filter(
    (each) => figure.test(each.replaceAll(/`[^`]*`/g, '')) && !isMeasured(each),
  );
  expect(loose).toEqual([]);
});
