"""Streams first and second moments of cache rows, keys before RoPE, in the engine's order of features.

Rows are those of the paper: all layers and KV heads of a token, keys and values apart, sinks left out. The file is
specified in docs/format/sensitivity.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import PRODUCER
from .errors import CollectError
from .gguf_model import ModelFacts
from .gradients import device_of, prefix_rows
from .head_order import engine_key_order
from .tensor_file import write_tensors
from .token_features import TokenMoments, token_features

FORMAT = "kvtc-moments"
VERSION = "1"
CHUNK_ROWS = 1024


class StreamMoments:
    """Sums of one stream about a shift near its mean: products in f32 per chunk, added up in f64."""

    def __init__(self, first: torch.Tensor) -> None:
        width = first.shape[1]
        self.rows = 0
        self.shift = first.double().mean(dim=0).float()
        self._sum = torch.zeros(width, dtype=torch.float64, device=first.device)
        self._product = torch.zeros(width, width, dtype=torch.float64, device=first.device)

    def add(self, rows: torch.Tensor) -> None:
        """Adds f32[n, width]."""
        for chunk in rows.split(CHUNK_ROWS):
            centred = chunk - self.shift
            self._sum += centred.double().sum(dim=0)
            self._product += centred.T @ centred
            self.rows += len(chunk)

    def tensors(self, stream: str) -> dict[str, torch.Tensor]:
        """f32 shift, f64 mean of (x − shift), f64 lower triangle of the mean of (x − shift)(x − shift)ᵀ."""
        below = torch.tril_indices(*self._product.shape, device=self._product.device)
        triangle = self._product[below[0], below[1]] / self.rows
        return {
            f"{stream}.shift": self.shift.cpu(),
            f"{stream}.mean": (self._sum / self.rows).cpu(),
            f"{stream}.second": triangle.cpu(),
        }


def document_rows(model: Any, facts: ModelFacts, document: torch.Tensor, sinks: int) -> dict[str, torch.Tensor]:
    """f32[tokens − sinks, layers·kvHeads·D] of both streams, features ordered layer, head, dimension."""
    rows = prefix_rows(model, document.long())
    order = engine_key_order(facts.keyHeadDim, facts.keyPairing).to(device_of(model))
    streams = {"key": rows.keys[..., order], "value": rows.values}
    return {name: tensor[:, sinks:].transpose(0, 1).flatten(1) for name, tensor in streams.items()}


def collect_moments(
    model: Any,
    facts: ModelFacts,
    documents: torch.Tensor,
    sinks: int,
    out: Path,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, torch.Tensor]:
    """Runs i32[n, T] documents and writes ``out``. Raises KVTC_OPTION_INVALID, KVTC_ROWS_NOT_FINITE."""
    if not 0 <= sinks < documents.shape[1]:
        raise CollectError("KVTC_OPTION_INVALID", f"--sinks {sinks} of documents of {documents.shape[1]} tokens")
    moments: dict[str, StreamMoments] = {}
    of_tokens: TokenMoments | None = None
    for index, document in enumerate(documents):
        streams = document_rows(model, facts, document, sinks)
        for stream, rows in streams.items():
            if not torch.isfinite(rows).all():
                raise CollectError("KVTC_ROWS_NOT_FINITE", f"document {index}: a {stream} row is not finite")
            if stream not in moments:
                moments[stream] = StreamMoments(rows)
            moments[stream].add(rows)
        features = token_features(model, document.long())[sinks:]
        of_tokens = of_tokens or TokenMoments(features.shape[1], features.device)
        of_tokens.add(features, {stream: rows - moments[stream].shift for stream, rows in streams.items()})
        on_step()
    tensors: dict[str, torch.Tensor] = {"documents": documents} | (of_tokens.tensors() if of_tokens else {})
    for stream, sums in moments.items():
        tensors |= sums.tensors(stream)
    about = {
        "format": FORMAT,
        "version": VERSION,
        "producer": PRODUCER,
        "model": json.dumps(facts.as_json(), sort_keys=True, separators=(",", ":")),
        "settings": json.dumps({"sinks": sinks, "rows": moments["key"].rows}, separators=(",", ":")),
    }
    write_tensors(out, tensors, about)
    return tensors
