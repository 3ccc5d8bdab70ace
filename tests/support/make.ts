/** The variables that a make passes down. A child make that inherits them joins its parent and prints other lines. */
export const makeVariables = ['MAKEFLAGS', 'MAKELEVEL', 'MFLAGS'];

/** Copies an environment so that a child make does not join ours. @param others more variables to omit */
export function withoutMake(env: NodeJS.ProcessEnv, others: string[] = []): NodeJS.ProcessEnv {
  const omitted = new Set([...makeVariables, ...others]);
  return Object.fromEntries(Object.entries(env).filter(([name]) => !omitted.has(name)));
}
