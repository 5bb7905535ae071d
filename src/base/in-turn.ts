// Jobs one after the other, in the order they were asked for. Does not know what they do.

/** Returns what starts a job once all jobs before it have ended, however they ended; its promise is the job's own. */
export function inTurn(): <T>(job: () => Promise<T>) => Promise<T> {
  let before: Promise<unknown> = Promise.resolve();
  return (job) => {
    const own = before.then(job);
    before = own.catch(() => undefined);
    return own;
  };
}
