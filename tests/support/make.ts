/** What a make hands down to those that it runs: they would be a part of it, and print other lines. */
export const makeVariables = ['MAKEFLAGS', 'MAKELEVEL', 'MFLAGS'];

/** A copy of an environment for a make of its own. @param others variables to leave out as well */
export function withoutMake(env: NodeJS.ProcessEnv, others: string[] = []): NodeJS.ProcessEnv {
  const left = new Set([...makeVariables, ...others]);
  return Object.fromEntries(Object.entries(env).filter(([name]) => !left.has(name)));
}
