import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';

/** The files that a payment goes through, each with its service. A file that joins the path is added here. */
const path = {
  'invoice-app': ['service.ts', 'antaeus.ts', 'payments.ts', 'lease.ts', 'provider.ts', 'reset.ts'],
  'payment-provider': ['service.ts', 'cashier.ts', 'ledger.ts'],
};

/** Files whose functions are the work of one step: each awaits one statement, and nothing else. */
const statements = ['invoice-app/src/batches.ts', 'payment-provider/src/charges.ts'];

/** What else these files await, and why nothing has to be stopped there. */
const elsewhere: [awaited: RegExp, reason: string][] = [
  [
    /^this\.#retry\.execute\(/,
    'waits between the steps of two attempts: stopping there is stopping at either',
  ],
  [/^this\.#(running|next|recovery)\b/, 'a shutdown waits for payments, they do not wait for it'],
  [/^(startServer|provider\.version|sendInvoices|this\.#http\.get)\(/, 'no payment'],
  [/^(resets\.reset|(this\.#options\.)?database\.transaction|query[(<]|resetInvoices)/, 'a reset'],
  [/^this\.#options\.(provider\.reset|resets\?\.finishAbandoned)\(/, 'steps of a reset'],
  [
    /^(this\.#options\.database\.query<\{ who|lockPayments\(|retireEpoch\(|deletePayments\(|\(await retireEpoch)/,
    'a reset',
  ],
  [/^(sendPages|find|hasUnpaid)\(/, 'what is read only'],
  [/^asking\.(mark|unmark|store)\(/, 'steps of payments.ts'],
  [/^payAll\(/, 'what the steps of payments.ts come to'],
  [/^settleAll\(/, 'waits for functions on the path'],
  [/^request\(controller/, 'the request that a step makes, with a limit of time'],
  [/^span\('batch'/, 'a span around steps of its own'],
  [/^withParents\(/, 'says whose trace the steps in it are part of'],
  [/^sleep\(lateness\)/, 'the answer is late on purpose, after its payment'],
];

export type ServiceName = keyof typeof path;

/** A named point of a payment. */
export interface NamedStep {
  service: ServiceName;
  name: string;
}

/** A source file, by its place under services/. */
export interface Source {
  service: ServiceName;
  file: string;
  text: string;
}

const services = resolve(import.meta.dirname, '../../services');
const read = (file: string) => readFileSync(join(services, file), 'utf8');

export function readPath(): Source[] {
  return (Object.keys(path) as ServiceName[]).flatMap((service) =>
    path[service].map((name) => ({
      service,
      file: `${service}/src/${name}`,
      text: read(`${service}/src/${name}`),
    })),
  );
}

/** The steps of a payment, as they are named in the sources. */
export function findSteps(sources = readPath()): NamedStep[] {
  return sources.flatMap(({ service, text }) =>
    [...text.matchAll(/\bstep\('([^']+)'/g)].map(([, name]) => ({ service, name: name! })),
  );
}

/**
 * Each await on the path that is neither a step nor a call of a function on the path, whose own awaits are looked
 * at in their place; each name that two steps have; each function that makes a step of two statements.
 */
export function findGaps(
  sources = readPath(),
  works = statements.map((file) => ({ file, text: read(file) })),
) {
  const gaps: string[] = [];
  const onPath = new Set(sources.flatMap(({ text }) => [...declaredIn(text)]));
  const isCall = (awaited: string) => {
    const callee = /^(?:[\w#?]+\.)*(#?\w+)\(/.exec(awaited)?.[1];
    return callee !== undefined && onPath.has(callee);
  };
  for (const { file, text } of sources) {
    for (const [awaited, line] of awaitedIn(text)) {
      if (/^(this\.#)?step\('/.test(awaited) || isCall(awaited)) continue;
      if (elsewhere.some(([pattern]) => pattern.test(awaited))) continue;
      // Of several at once, each is a call of its own.
      if (/^Promise\.all(Settled)?\(/.test(awaited) && [...onPath].some((name) => awaited.includes(name)))
        continue;
      gaps.push(`${file}:${line}: not a step: await ${awaited.split('\n')[0]}`);
    }
  }
  const names = findSteps(sources).map(({ name }) => name);
  for (const name of names.filter((each, index) => names.indexOf(each) !== index)) {
    gaps.push(`two steps are named '${name}'`);
  }
  for (const { file, text } of works) {
    for (const [name, body] of functionsOf(text)) {
      const awaits = awaitedIn(body);
      const isStatement = awaits.every(([awaited]) => /^(database\.)?query\b/.test(awaited));
      if (awaits.length > 1 || !isStatement) gaps.push(`${file}: ${name} is more than one statement`);
    }
  }
  return gaps;
}

/** What is awaited: the source from behind the word on, and its line. `for await` and `.then` wait as well. */
function awaitedIn(text: string): [awaited: string, line: number][] {
  const code = withoutComments(text);
  const lineOf = (index: number) => code.slice(0, index).split('\n').length;
  return [...code.matchAll(/\b(?:for await \(.*? of |await )|^.*?(?=\S+\.then\()/gm)].map(
    ({ 0: word, index }) => [
      code.slice(index + word.length, index + word.length + 200).trimStart(),
      lineOf(index),
    ],
  );
}

/** The functions and methods that a file declares, and the local ones that wait. */
function declaredIn(text: string): Set<string> {
  const code = withoutComments(text);
  const patterns = [
    /^ *(?:export )?(?:async )?function\*? (\w+)/gm,
    /^ {2}(?:async )?(#?\w+)(?:<\w+>)?\([^;]*?\)[^;\n]*\{$/gm,
    /const (\w+) = async \(/g,
  ];
  const names = patterns.flatMap((pattern) => [...code.matchAll(pattern)].map(([, name]) => name!));
  return new Set(
    names.filter(
      (name) => !['start', 'constructor', 'if', 'for', 'while', 'reset', 'version', 'stop'].includes(name),
    ),
  );
}

function functionsOf(text: string): [name: string, body: string][] {
  return withoutComments(text)
    .split(/^export async function /m)
    .slice(1)
    .map((part) => [/^\w+/.exec(part)![0], part.split(/^\}/m)[0]!]);
}

/** With as many lines as before. */
function withoutComments(text: string): string {
  return text
    .replaceAll(/\/\*[^]*?\*\//g, (comment) => comment.replaceAll(/[^\n]/g, ''))
    .replaceAll(/(^|\s)\/\/.*$/gm, '$1');
}
