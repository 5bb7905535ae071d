// Buffers of floats that are used again and again. Does not know what is in them.

/** Buffers that jobs hand on to later ones. A chunk's would otherwise be mapped, zeroed and collected anew each time. */
export interface FloatPool {
  /** f32[length] of whatever it held before. */
  take(length: number): Float32Array;
  /** Gives a taken buffer back; nothing may read it any more. */
  give(values: Float32Array): void;
}

/** Holds as many buffers as were ever taken at once, each as long as the longest it has served as. */
export function floatPool(): FloatPool {
  const free: Float32Array[] = [];
  return {
    take: (length) => {
      const held = free.pop();
      return (held !== undefined && held.length >= length ? held : new Float32Array(length)).subarray(0, length);
    },
    give: (values) => {
      free.push(new Float32Array(values.buffer as ArrayBuffer));
    },
  };
}
