"""Writes small GGUF models with random weights, laid out as llama.cpp's converter lays them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

LAYERS = 2
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 8
WIDTH = HEADS * HEAD_DIM
#: What the loading library takes for granted of qwen3.
QWEN3_HEAD_DIM = 128
FEED_FORWARD = 48
VOCABULARY = 64


def head_dim(architecture: str) -> int:
    """Dimensions of a head of the tiny model."""
    return QWEN3_HEAD_DIM if architecture == "qwen3" else HEAD_DIM


def write_tiny_gguf(path: Path, architecture: str, extra: dict[str, int] | None = None) -> dict[str, np.ndarray]:
    """Returns the tensors as stored. ``extra``: further integer metadata under the architecture's prefix."""
    random = np.random.default_rng(3)
    dims = head_dim(architecture)
    writer = GGUFWriter(path, architecture)
    writer.add_name(f"tiny {architecture}")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_key_length(dims)
    writer.add_value_length(dims)
    writer.add_vocab_size(VOCABULARY)
    for key, value in (extra or {}).items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([chr(33 + i) for i in range(VOCABULARY - 1)] + ["AB"])
    writer.add_token_merges(["A B"])

    tensors: dict[str, np.ndarray] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        tensors[name] = (random.standard_normal((rows, columns)) / np.sqrt(columns) * 1.5).astype(np.float32)

    def vector(name: str, size: int, centre: float) -> None:
        tensors[name] = (centre + 0.2 * random.standard_normal(size)).astype(np.float32)

    matrix("token_embd.weight", VOCABULARY, WIDTH)
    matrix("output.weight", VOCABULARY, WIDTH)
    vector("output_norm.weight", WIDTH, 1)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        for name, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS), ("attn_v", KV_HEADS)):
            matrix(f"{block}{name}.weight", heads * dims, WIDTH)
            if architecture == "qwen2":
                vector(f"{block}{name}.bias", heads * dims, 0)
        if architecture == "qwen3":
            vector(f"{block}attn_q_norm.weight", dims, 1)
            vector(f"{block}attn_k_norm.weight", dims, 1)
        matrix(f"{block}attn_output.weight", WIDTH, HEADS * dims)
        matrix(f"{block}ffn_gate.weight", FEED_FORWARD, WIDTH)
        matrix(f"{block}ffn_up.weight", FEED_FORWARD, WIDTH)
        matrix(f"{block}ffn_down.weight", WIDTH, FEED_FORWARD)
        vector(f"{block}attn_norm.weight", WIDTH, 1)
        vector(f"{block}ffn_norm.weight", WIDTH, 1)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
