/**
 * Waits for every promise, even if one is rejected, so that no work continues in the background.
 * @returns their values
 * @throws the error of the first rejected promise, in the order of `promises`
 */
export async function settleAll<T>(promises: Promise<T>[]): Promise<T[]> {
  await Promise.allSettled(promises);
  return Promise.all(promises);
}
