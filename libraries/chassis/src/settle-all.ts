/**
 * Waits for every promise, even if one is rejected, so that no work continues in the background.
 * @throws the error of the first rejected promise, in the order of `promises`
 */
export async function settleAll(promises: Promise<unknown>[]): Promise<void> {
  await Promise.allSettled(promises);
  await Promise.all(promises);
}
