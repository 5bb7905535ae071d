"""Opens a GGUF: the facts that identify the model, and the model itself in transformers, weights dequantised.

Refuses what would not give the rows that llama.cpp caches: unknown architectures, scaled or partial RoPE, sliding
windows, experts. Does not know gradients or files written.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from .errors import CollectError
from .head_order import HALF_SPLIT, INTERLEAVED, engine_key_order

PAIRINGS: dict[str, str] = {"llama": INTERLEAVED, "qwen2": HALF_SPLIT, "qwen3": HALF_SPLIT}


@dataclass(frozen=True)
class ModelFacts:
    """What ties a file of measurements to the model it was measured on."""

    architecture: str
    name: str
    layers: int
    kvHeads: int
    keyHeadDim: int
    valueHeadDim: int
    keyPairing: str
    fingerprint: str
    fileBytes: int
    fileSha256: str

    def as_json(self) -> dict[str, object]:
        """Plain data for metadata."""
        return asdict(self)


def open_gguf(path: Path) -> GGUFReader:
    """Raises KVTC_FILE_NOT_FOUND, KVTC_GGUF_MALFORMED."""
    if not path.is_file():
        raise CollectError("KVTC_FILE_NOT_FOUND", f"{path} is not a file; name a GGUF model")
    try:
        return GGUFReader(path)
    except Exception as error:  # the reader raises whatever its parsing runs into
        raise CollectError("KVTC_GGUF_MALFORMED", f"{path} is no complete GGUF file: {error}") from error


def field(reader: GGUFReader, key: str, default: Any = None) -> Any:
    """A metadata value, or the default."""
    found = reader.get_field(key)
    return default if found is None else found.contents()


def read_facts(reader: GGUFReader, path: Path) -> ModelFacts:
    """Takes only models whose rows are known. Raises KVTC_MODEL_UNSUPPORTED, KVTC_ROPE_UNSUPPORTED."""
    architecture = str(field(reader, "general.architecture", ""))
    pairing = PAIRINGS.get(architecture)
    if pairing is None:
        known = ", ".join(PAIRINGS)
        raise CollectError("KVTC_MODEL_UNSUPPORTED", f"{path} has architecture {architecture!r}; known: {known}")

    def number(key: str, default: int | None = None) -> int:
        value = field(reader, f"{architecture}.{key}", default)
        if not isinstance(value, int) or value <= 0:
            raise CollectError("KVTC_MODEL_UNSUPPORTED", f"{path} has {architecture}.{key} = {value!r}, not a count")
        return value

    heads = number("attention.head_count")
    key_dim = number("attention.key_length", number("embedding_length") // heads)
    value_dim = number("attention.value_length", key_dim)
    for key in ("attention.sliding_window", "expert_count"):
        if field(reader, f"{architecture}.{key}"):
            raise CollectError("KVTC_MODEL_UNSUPPORTED", f"{path} sets {architecture}.{key}, which is not handled")
    rotated = number("rope.dimension_count", key_dim)
    scaling = field(reader, f"{architecture}.rope.scaling.type", "none")
    factors = any(tensor.name.startswith("rope_f") for tensor in reader.tensors)
    if rotated != key_dim or scaling != "none" or factors or field(reader, f"{architecture}.rope.scale_linear"):
        raise CollectError(
            "KVTC_ROPE_UNSUPPORTED",
            f"{path} rotates {rotated} of {key_dim} dimensions, scaling {scaling!r}, factors {factors}; "
            "only plain RoPE over whole heads is handled here",
        )
    return ModelFacts(
        architecture=architecture,
        name=str(field(reader, "general.name", "")),
        layers=number("block_count"),
        kvHeads=number("attention.head_count_kv", heads),
        keyHeadDim=key_dim,
        valueHeadDim=value_dim,
        keyPairing=pairing,
        fingerprint=fingerprint(reader, path),
        fileBytes=path.stat().st_size,
        fileSha256=hash_file(path),
    )


def fingerprint(reader: GGUFReader, path: Path) -> str:
    """The model's name in profiles: sha256, hex, over that of the header and the first 4 096 bytes of every tensor."""
    end = max(tensor.field.offset + sum(part.nbytes for part in tensor.field.parts) for tensor in reader.tensors)
    with open(path, "rb") as file:
        digest = hashlib.sha256(hashlib.sha256(file.read(end)).digest())
        for tensor in reader.tensors:
            file.seek(tensor.data_offset)
            digest.update(file.read(min(int(tensor.n_bytes), 4096)))
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """sha256, hex, of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_model(path: Path, facts: ModelFacts, reader: GGUFReader, device: str) -> Any:
    """The causal language model in f32 with frozen weights, checked against the file's own key and value rows.

    Raises KVTC_OPTION_INVALID for a device that is not there, KVTC_ENGINE_FAILED when transformers refuses the file.
    """
    import transformers

    if device == "cuda" and not torch.cuda.is_available():
        raise CollectError("KVTC_OPTION_INVALID", "--device cuda: PyTorch sees no CUDA device; use --device cpu")
    torch.backends.cuda.matmul.allow_tf32 = False
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation="sdpa"
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CollectError("KVTC_ENGINE_FAILED", f"transformers could not load {path}: {error}") from error
    check_weights(model, facts, reader, path)
    return model.requires_grad_(False).to(device).eval()


def check_weights(model: Any, facts: ModelFacts, reader: GGUFReader, path: Path) -> None:
    """Every key row of the file must be the loaded row that the head order says, every value row its own.

    llama.cpp's cache row holds the products of exactly these rows in exactly this order, so this proves the order of
    dimensions on every load. Raises KVTC_ENGINE_FAILED.
    """
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    key_order = engine_key_order(facts.keyHeadDim, facts.keyPairing)
    for layer, block in enumerate(model.model.layers):
        if block.self_attn.head_dim != facts.keyHeadDim:
            raise CollectError(
                "KVTC_ENGINE_FAILED",
                f"{path} has heads of {facts.keyHeadDim}, transformers made {block.self_attn.head_dim} of them",
            )
        for projection, name, order in (
            (block.self_attn.k_proj, "attn_k", key_order),
            (block.self_attn.v_proj, "attn_v", torch.arange(facts.valueHeadDim)),
        ):
            stored = tensors[f"blk.{layer}.{name}.weight"]
            expected = torch.from_numpy(np.array(dequantize(stored.data, stored.tensor_type), dtype=np.float32))
            loaded = projection.weight.detach().reshape(facts.kvHeads, len(order), -1)[:, order]
            if not torch.equal(loaded.reshape(expected.shape), expected):
                raise CollectError(
                    "KVTC_ENGINE_FAILED",
                    f"blk.{layer}.{name}.weight of {path} is not what transformers loaded under the "
                    f"{facts.keyPairing} head order; the versions in requirements.txt are known to agree",
                )
