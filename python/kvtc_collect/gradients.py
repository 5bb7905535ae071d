"""Gradients of what a model would say next with respect to the keys and values it has cached, before RoPE.

Tensors here are in transformers' order of head dimensions; callers map them (head_order.py). Does not know files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache


@dataclass(frozen=True)
class Rows:
    """One token range's cache in all layers: f32 [layers, tokens, kvHeads, headDim], keys before RoPE."""

    keys: torch.Tensor
    values: torch.Tensor


def device_of(model: Any) -> torch.device:
    """Where the weights are."""
    return next(model.parameters()).device


def prefix_rows(model: Any, token_ids: torch.Tensor) -> Rows:
    """Keys before RoPE and values that the model computes for i64[tokens] from position 0 on."""
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    hooks = []
    for block in model.model.layers:
        attention = block.self_attn
        # A norm of keys per head, where the architecture has one, comes before RoPE: the cache holds its output.
        last = getattr(attention, "k_norm", None) or attention.k_proj
        width = attention.head_dim
        hooks.append(last.register_forward_hook(lambda _m, _i, out, w=width: keys.append(_by_head(out, w))))
        hooks.append(
            attention.v_proj.register_forward_hook(lambda _m, _i, out, w=width: values.append(_by_head(out, w)))
        )
    try:
        with torch.no_grad():
            model.model(token_ids[None].to(device_of(model)), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return Rows(torch.stack(keys), torch.stack(values))


def _by_head(out: torch.Tensor, head_dim: int) -> torch.Tensor:
    return out[0].reshape(out.shape[1], -1, head_dim)


def continuation_log_probabilities(model: Any, rows: Rows, continuation: torch.Tensor) -> torch.Tensor:
    """[n, vocabulary] next-token log probabilities of i64[n] run on top of a prefix cache made of ``rows``."""
    device = device_of(model)
    prefix = rows.keys.shape[1]
    cos, sin = model.model.rotary_emb(rows.keys, torch.arange(prefix, device=device)[None])
    cos, sin = cos[0][:, None], sin[0][:, None]  # [tokens, 1, headDim], for every layer and head
    half = rows.keys.shape[-1] // 2
    turned = torch.cat([-rows.keys[..., half:], rows.keys[..., :half]], dim=-1)
    rotated = rows.keys * cos + turned * sin
    cache = DynamicCache()
    for layer in range(rows.keys.shape[0]):
        cache.update(rotated[layer].transpose(0, 1)[None], rows.values[layer].transpose(0, 1)[None], layer)
    positions = torch.arange(prefix, prefix + len(continuation), device=device)[None]
    output = model(continuation[None].to(device), past_key_values=cache, position_ids=positions, use_cache=True)
    return torch.log_softmax(output.logits[0], dim=-1)


def sample_targets(log_probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """i64[n]: one token per row, drawn by inverting the distribution function at f64[n] in [0, 1).

    Uniforms come from outside, so that the same seed gives the same draws on every device up to rounding.
    """
    drawn = []
    for start in range(0, len(log_probabilities), 64):
        chunk = log_probabilities[start : start + 64].detach().double().exp().cumsum(dim=1)
        at = uniforms[start : start + 64, None].to(chunk.device) * chunk[:, -1:]
        drawn.append(torch.searchsorted(chunk, at, right=True)[:, 0].clamp(max=chunk.shape[1] - 1))
    return torch.cat(drawn)


def sampled_gradients(
    model: Any, rows: Rows, continuation: torch.Tensor, uniforms: torch.Tensor, weights: torch.Tensor
) -> Iterator[Rows]:
    """For each row of f64[draws, n]: the gradient of the log probabilities of the tokens drawn, summed by f32[n] weights.

    Each position's token is drawn from the model's own distribution; their gradients' outer product is an unbiased
    estimate of the Fisher information of the cached values, in which a position counts by its weight squared. The prefix's cache is held fixed: no gradient flows from
    one cached row to another.
    """
    leaves = Rows(rows.keys.detach().requires_grad_(True), rows.values.detach().requires_grad_(True))
    with torch.enable_grad():
        log_probabilities = continuation_log_probabilities(model, leaves, continuation)
        for draw, uniform in enumerate(uniforms):
            targets = sample_targets(log_probabilities, uniform)
            total = (log_probabilities.gather(1, targets[:, None])[:, 0] * weights.to(log_probabilities.device)).sum()
            last = draw == len(uniforms) - 1
            yield Rows(*torch.autograd.grad(total, (leaves.keys, leaves.values), retain_graph=not last))
