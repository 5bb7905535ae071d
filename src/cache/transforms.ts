// Keeps a profile's matrices ready in a numeric backend: one analysis and one synthesis per stream, at the rank in use.
// Loading a basis costs a fraction of a second, so callers that code many caches hold one of these open.
// Does not know: plans, containers, engines' state bytes.

import type { ElementType, StreamKind } from '../base/geometry.ts';
import { headDim } from '../base/geometry.ts';
import { KvtcError } from '../base/errors.ts';
import { inTurn } from '../base/in-turn.ts';
import type {
  Analysis,
  Backend,
  MatrixSource,
  Precision,
  RowLayout,
  Synthesis,
  TransformSpec,
} from '../linalg/backend.ts';
import type { EmbeddingSource, OpenTokenMeans, SequenceMeans } from '../calibration/token-means.ts';
import { openTokenMeans } from '../calibration/token-means.ts';
import type { Profile } from '../profile/profile.ts';
import { withDerivedAnalysis } from './derived-analysis.ts';
import { profileEmbeddings } from './model-embeddings.ts';

/** Ranks of one matrix kept at a time: a chunk with finer tokens takes more components than the others. */
const RANKS_KEPT = 2;

/** Closable set of prepared transforms. Ranks change with the ratio and with the tokens; the last two used stay prepared. */
export interface Transforms {
  readonly profile: Profile;
  readonly backend: Backend;
  analysis(stream: StreamKind, rank: number, element: ElementType): Promise<Analysis>;
  synthesis(stream: StreamKind, rank: number, element: ElementType): Promise<Synthesis>;
  /**
   * What the profile expects of a sequence by its token ids; null where it expects nothing. Throws KVTC_STATE_UNSUPPORTED
   * without ids, KVTC_OPTION_INVALID without a model, and as its embeddings do.
   */
  means(tokens: Int32Array | null): Promise<SequenceMeans | null>;
  close(): void;
}

export interface TransformsOptions {
  /** q8_0, the default, costs 2.5e-5 of a product's energy and doubles the speed on CPUs. */
  readonly precision?: Precision | undefined;
  /** GGUF of the profile's model, or its embeddings: for profiles that expect something of a token by its id. */
  readonly model?: string | EmbeddingSource | undefined;
}

/**
 * Opens an empty set over a profile and a backend; nothing is read before the first use. The caller keeps ownership of
 * `profile` and `backend`.
 */
export function openTransforms(profile: Profile, backend: Backend, options: TransformsOptions = {}): Transforms {
  const { precision = 'q8_0', model } = options;
  let tokenMeans: Promise<OpenTokenMeans> | null = null;
  // Newest first; older than RANKS_KEPT are closed.
  const ready = new Map<string, { readonly key: string; readonly value: Promise<Analysis | Synthesis> }[]>();
  const obtain = <T extends Analysis | Synthesis>(slot: string, key: string, prepare: () => Promise<T>): Promise<T> => {
    const held = ready.get(slot) ?? [];
    const found = held.find((one) => one.key === key) ?? { key, value: prepare() };
    const others = held.filter((one) => one !== found);
    ready.set(slot, [found, ...others.slice(0, RANKS_KEPT - 1)]);
    for (const { value } of others.slice(RANKS_KEPT - 1)) closeWhenReady(value);
    found.value.catch(() => ready.set(slot, ready.get(slot)?.filter((one) => one !== found) ?? []));
    return found.value as Promise<T>;
  };
  const spec = (stream: StreamKind, synthesis: MatrixSource, element: ElementType): TransformSpec => ({
    layout: rowLayout(profile, stream, element),
    mean: profile.stream(stream).mean,
    analysis: synthesis,
    synthesis,
    rope: stream === 'key' ? profile.model.rope : null,
    precision,
  });
  // Deriving keeps all cores busy by itself, and takes tens of megabytes.
  const derive = inTurn();
  const prepareAnalysis = async (stream: StreamKind, rank: number, element: ElementType): Promise<Analysis> => {
    const { analysis, synthesis: whole } = profile.stream(stream);
    const synthesis = firstRows(whole, rank);
    const prepare = (matrix: MatrixSource): Promise<Analysis> =>
      backend.prepareAnalysis({ ...spec(stream, synthesis, element), analysis: matrix });
    return 'read' in analysis
      ? prepare(firstRows(analysis, rank))
      : derive(() => withDerivedAnalysis(synthesis, analysis, backend, prepare));
  };
  const prepareSynthesis = async (stream: StreamKind, rank: number, element: ElementType): Promise<Synthesis> =>
    backend.prepareSynthesis(spec(stream, firstRows(profile.stream(stream).synthesis, rank), element));
  return {
    profile,
    backend,
    analysis: (stream, rank, element) =>
      obtain(`analysis ${stream}`, `${rank} ${element}`, () => prepareAnalysis(stream, rank, element)),
    synthesis: (stream, rank, element) =>
      obtain(`synthesis ${stream}`, `${rank} ${element}`, () => prepareSynthesis(stream, rank, element)),
    means: async (tokens) => {
      if (profile.codec !== 'wtc' || profile.tokenMeans === null) return null;
      if (tokens === null) {
        throw new KvtcError(
          'KVTC_STATE_UNSUPPORTED',
          'the profile expects part of each token by its id, and there are no token ids: give them beside the state',
        );
      }
      const embeddings = typeof model === 'function' ? model : profileEmbeddings(profile, model);
      tokenMeans ??= openTokenMeans(profile.tokenMeans, embeddings, backend, precision);
      return (await tokenMeans).of(tokens);
    },
    close: () => {
      if (tokenMeans !== null) closeWhenReady(tokenMeans);
      tokenMeans = null;
      for (const held of ready.values()) for (const { value } of held) closeWhenReady(value);
      ready.clear();
    },
  };
}

function closeWhenReady(prepared: Promise<Pick<Analysis, 'close'>>): void {
  void prepared.then(
    (ready) => ready.close(),
    () => undefined,
  );
}

/** How rows of one stream lie in memory. Throws KVTC_STATE_UNSUPPORTED for element types the transform does not take. */
function rowLayout(profile: Profile, stream: StreamKind, element: ElementType): RowLayout {
  if (element === 'q8_0') {
    throw new KvtcError(
      'KVTC_STATE_UNSUPPORTED',
      `${stream} rows are q8_0; transform coding takes f16, bf16 or f32 caches. Run the context with an f16 cache`,
      { stream, element },
    );
  }
  const { geometry } = profile.model;
  return { layers: geometry.layers, heads: geometry.kvHeads, headDim: headDim(geometry, stream), element };
}

function firstRows(matrix: MatrixSource, rows: number): MatrixSource {
  if (rows > matrix.rows) {
    throw new KvtcError('KVTC_PROFILE_MISMATCH', `a plan wants rank ${rows}, the profile holds ${matrix.rows}`, {
      gotRank: matrix.rows,
      expectedRank: rows,
    });
  }
  return { rows, columns: matrix.columns, read: (start, end, out) => matrix.read(start, end, out) };
}
