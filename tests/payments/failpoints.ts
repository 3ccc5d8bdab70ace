import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';

/** The source files on the path of a payment, by service. Add a file here when it joins the path. */
const pathFiles = {
  'invoice-app': ['service.ts', 'antaeus.ts', 'payments.ts', 'lease.ts', 'provider.ts', 'reset.ts'],
  'payment-provider': ['service.ts', 'cashier.ts', 'ledger.ts'],
};

/** The files with the statements that failpoints run. Each of their functions awaits one statement and nothing else. */
const statementFiles = ['invoice-app/src/batches.ts', 'payment-provider/src/charges.ts'];

/** The awaits in these files that need no failpoint, and why. */
const exempt: [awaited: RegExp, reason: string][] = [
  [/^this\.#retry\.execute\(/, 'waits between the failpoints of two attempts, which cover it'],
  [/^this\.#(running|next|recovery)\b/, 'a shutdown waits for payments, not the other way round'],
  [/^(startServer|provider\.version|sendInvoices|this\.#http\.get)\(/, 'not part of a payment'],
  [/^(resets\.reset|(this\.#options\.)?database\.transaction|query[(<]|resetInvoices)/, 'a reset'],
  [/^this\.#options\.(provider\.reset|resets\?\.finishAbandoned)\(/, 'failpoints of a reset'],
  [
    /^(this\.#options\.database\.query<\{ who|lockPayments\(|retireEpoch\(|deletePayments\(|\(await retireEpoch)/,
    'a reset',
  ],
  [/^(sendPages|find|hasUnpaid)\(/, 'only reads'],
  [/^context\.(mark|unmark|store)\(/, 'failpoints of payments.ts'],
  [/^payAll\(/, 'the result of the failpoints of payments.ts'],
  [/^settleAll\(/, 'waits for functions on the path'],
  [/^request\(controller/, 'the request of a failpoint, with a timeout'],
  [/^span\('batch'/, 'a span around other failpoints'],
  [/^withParents\(/, 'sets the parent span of the failpoints in it'],
  [/^sleep\(lateness\)/, 'an injected delay of the answer, after its payment'],
];

export type ServiceName = keyof typeof pathFiles;

/** A named await of a payment, run through `step(name, …)`. Tests kill a process or inject errors there. */
export interface Failpoint {
  service: ServiceName;
  name: string;
}

/** A source file. `file` is its path below services/. */
export interface Source {
  service: ServiceName;
  file: string;
  text: string;
}

const services = resolve(import.meta.dirname, '../../services');
const read = (file: string) => readFileSync(join(services, file), 'utf8');

export function readPaymentPath(): Source[] {
  return (Object.keys(pathFiles) as ServiceName[]).flatMap((service) =>
    pathFiles[service].map((name) => ({
      service,
      file: `${service}/src/${name}`,
      text: read(`${service}/src/${name}`),
    })),
  );
}

/** Finds the failpoints of a payment: the calls of `step('name', …)` in the sources. */
export function findFailpoints(sources = readPaymentPath()): Failpoint[] {
  return sources.flatMap(({ service, text }) =>
    [...text.matchAll(/\bstep\('([^']+)'/g)].map(([, name]) => ({ service, name: name! })),
  );
}

/**
 * Finds each await on the path without a failpoint, each duplicate name, and each failpoint that runs more than one
 * statement. A call of a function on the path needs no failpoint, because the awaits in that function have their own.
 */
export function findGaps(
  sources = readPaymentPath(),
  statements = statementFiles.map((file) => ({ file, text: read(file) })),
) {
  const gaps: string[] = [];
  const onPath = new Set(sources.flatMap(({ text }) => [...declaredIn(text)]));
  const isCall = (awaited: string) => {
    const callee = /^(?:[\w#?]+\.)*(#?\w+)\(/.exec(awaited)?.[1];
    return callee !== undefined && onPath.has(callee);
  };
  for (const { file, text } of sources) {
    for (const [awaited, line] of awaitsIn(text)) {
      if (/^(this\.#)?step\('/.test(awaited) || isCall(awaited)) continue;
      if (exempt.some(([pattern]) => pattern.test(awaited))) continue;
      // Each call inside Promise.all is checked where its function is declared.
      if (/^Promise\.all(Settled)?\(/.test(awaited) && [...onPath].some((name) => awaited.includes(name)))
        continue;
      gaps.push(`${file}:${line}: not a failpoint: await ${awaited.split('\n')[0]}`);
    }
  }
  const names = findFailpoints(sources).map(({ name }) => name);
  for (const name of names.filter((each, index) => names.indexOf(each) !== index)) {
    gaps.push(`two failpoints are named '${name}'`);
  }
  for (const { file, text } of statements) {
    for (const [name, body] of functionsOf(text)) {
      const awaits = awaitsIn(body);
      const isStatement = awaits.every(([awaited]) => /^(database\.)?query\b/.test(awaited));
      if (awaits.length > 1 || !isStatement) gaps.push(`${file}: ${name} runs more than one statement`);
    }
  }
  return gaps;
}

/** Returns the source after each await, with its line. `for await` and `.then` count as well. */
function awaitsIn(text: string): [awaited: string, line: number][] {
  const code = withoutComments(text);
  const lineOf = (index: number) => code.slice(0, index).split('\n').length;
  return [...code.matchAll(/\b(?:for await \(.*? of |await )|^.*?(?=\S+\.then\()/gm)].map(
    ({ 0: word, index }) => [
      code.slice(index + word.length, index + word.length + 200).trimStart(),
      lineOf(index),
    ],
  );
}

/** Returns the names of the functions and methods that a file declares, and of its local async functions. */
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

/** Removes the comments but keeps the line numbers. */
function withoutComments(text: string): string {
  return text
    .replaceAll(/\/\*[^]*?\*\//g, (comment) => comment.replaceAll(/[^\n]/g, ''))
    .replaceAll(/(^|\s)\/\/.*$/gm, '$1');
}
