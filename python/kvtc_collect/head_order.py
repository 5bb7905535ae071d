"""Maps the dimensions of a key head between the order of transformers and that of llama.cpp's cache rows.

A RoPE pair is (i, i + half) in transformers. For architectures that llama.cpp rotates in adjacent pairs, the GGUF holds
the same weight rows as (2i, 2i + 1), and transformers reorders them when it loads the file. Values are never rotated,
so their order is the same on both sides.
"""

from __future__ import annotations

import torch

INTERLEAVED = "interleaved"
HALF_SPLIT = "half-split"


def engine_key_order(head_dim: int, pairing: str) -> torch.Tensor:
    """i64[head_dim]: ``order[e]`` is the transformers dimension that the engine keeps at ``e``."""
    if pairing == HALF_SPLIT:
        return torch.arange(head_dim)
    if pairing != INTERLEAVED or head_dim % 2:
        raise ValueError(f"pairing {pairing!r} of {head_dim} dimensions")
    half = head_dim // 2
    return torch.stack([torch.arange(half), torch.arange(half) + half], dim=1).reshape(head_dim)


def transformers_key_order(head_dim: int, pairing: str) -> torch.Tensor:
    """i64[head_dim]: the inverse, ``order[t]`` is the engine dimension that transformers keeps at ``t``."""
    return torch.argsort(engine_key_order(head_dim, pairing))
