// Runs chunk jobs a few at a time and hands their results on in order, so that matrix products (engine threads),
// quantising (this thread) and DEFLATE (libuv's pool) overlap while memory stays bounded by `concurrency` chunks.

/**
 * Calls `work` for every item, at most `concurrency` at once, and `sink` with each result in item order.
 * The first failure stops new work, waits for what is running and is rethrown.
 */
export async function mapInOrder<Item, Result>(
  items: readonly Item[],
  concurrency: number,
  work: (item: Item, index: number) => Promise<Result>,
  sink: (result: Result, item: Item, index: number) => Promise<void> | void,
): Promise<void> {
  const running: (Promise<Result> | undefined)[] = [];
  let next = 0;
  const launch = (): void => {
    const index = next++;
    const job = work(items[index] as Item, index);
    // A rejection is met below, in order; this keeps it from counting as unhandled until then.
    job.catch(() => undefined);
    running.push(job);
  };
  try {
    for (let index = 0; index < items.length; index++) {
      while (next < items.length && next - index < concurrency) launch();
      await sink(await (running[index] as Promise<Result>), items[index] as Item, index);
      running[index] = undefined; // lets the result go
    }
  } finally {
    await Promise.allSettled(running.filter((job) => job !== undefined));
  }
}
