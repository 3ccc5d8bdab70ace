/**
 * Waits for every promise, also where one is rejected: nothing goes on in the background after that.
 * @throws what the first rejected one was rejected with, in the order of `promises`
 */
export async function settleAll(promises: Promise<unknown>[]): Promise<void> {
  await Promise.allSettled(promises);
  await Promise.all(promises);
}
