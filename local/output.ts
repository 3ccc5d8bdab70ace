import { styleText } from 'node:util';

export type Say = (text: string) => void;

const colours = ['cyan', 'magenta', 'yellow', 'green', 'blue'] as const;

/** Returns, for each name, a function that writes whole lines with that name in front. */
export function createOutput<Name extends string>(
  names: readonly Name[],
  { write, colour }: { write: (text: string) => void; colour: boolean },
): (name: Name) => Say {
  const width = Math.max(...names.map((name) => name.length));
  return (name) => {
    const label = `${name.padEnd(width)} |`;
    const style = colours[names.indexOf(name) % colours.length] ?? 'cyan';
    const prefix = colour ? styleText(style, label, { validateStream: false }) : label;
    return (text) => {
      for (const line of text.split('\n')) write(`${prefix} ${line}\n`);
    };
  };
}

/** Whether a person reads the stream and has not turned colour off: https://no-color.org */
export function wantsColour(stream: { isTTY?: boolean }, env: NodeJS.ProcessEnv): boolean {
  return stream.isTTY === true && !env.NO_COLOR && env.TERM !== 'dumb';
}

/** Formats a line of a service's JSON log for people, keeps other lines as they are, and escapes control characters. */
export function readable(line: string): string {
  return describeEvent(line).split('\n').map(printable).join('\n');
}

/** Replaces control characters with their codes: a terminal would interpret them as commands. */
function printable(line: string): string {
  return line.replace(
    /(?!\t)\p{Cc}/gu,
    (control) => `\\x${control.charCodeAt(0).toString(16).padStart(2, '0')}`,
  );
}

function describeEvent(line: string): string {
  const event = parse(line);
  if (!event) return line;
  const { level, time, msg, service: _prefixed, requestId, err, ...rest } = event;
  const fields = Object.entries(rest).map(([key, value]) => `${key}=${show(value)}`);
  // Eight characters are enough to follow a request from service to service by eye.
  if (typeof requestId === 'string') fields.push(`requestId=${requestId.slice(0, 8)}`);
  const clock = new Date(String(time)).toTimeString().slice(0, 8);
  return [[clock, level, msg, ...fields].join(' '), ...describe(err)].join('\n');
}

function parse(line: string): Record<string, unknown> | undefined {
  if (!line.startsWith('{"level":')) return undefined;
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}

function show(value: unknown): string {
  return typeof value === 'string' && /^\S+$/.test(value) ? value : JSON.stringify(value);
}

function describe(error: unknown): string[] {
  if (typeof error !== 'object' || error === null) return [];
  const { stack, message } = error as { stack?: string; message?: string };
  return (stack ?? message ?? JSON.stringify(error)).split('\n').map((line) => `  ${line}`);
}
