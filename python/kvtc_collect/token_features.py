"""What a token and its predecessor say about a row before the model has read the rest: their embeddings.

Features are those of docs/format/profile.md: both tokens' embeddings, each over its own root mean square. Does not know
files or what is predicted from them.
"""

from __future__ import annotations

from typing import Any

import torch

#: Added to the mean square: the embedding of an unused token may be zero.
LEAST_SQUARE = 1e-12


def token_features(model: Any, document: torch.Tensor) -> torch.Tensor:
    """f32[tokens, 2·E] of i64[tokens]: own embedding, then the predecessor's; the first token's predecessor is zero."""
    with torch.no_grad():
        rows = model.get_input_embeddings()(document.to(model.get_input_embeddings().weight.device)).float()
        own = rows * torch.rsqrt(rows.square().mean(dim=1, keepdim=True) + LEAST_SQUARE)
        before = torch.cat([torch.zeros_like(own[:1]), own[:-1]])
        return torch.cat([own, before], dim=1)


class TokenMoments:
    """Sums of the features, and of their products with each other and with rows about their shift."""

    def __init__(self, features: int, device: torch.device) -> None:
        self._sum = torch.zeros(features, dtype=torch.float64, device=device)
        self._product = torch.zeros(features, features, dtype=torch.float64, device=device)
        self._cross: dict[str, torch.Tensor] = {}
        self._rows = 0

    def add(self, features: torch.Tensor, centred: dict[str, torch.Tensor]) -> None:
        """Adds f32[n, features] and, by stream, f32[n, width] rows less their shift, of the same tokens."""
        self._rows += len(features)
        self._sum += features.double().sum(dim=0)
        self._product += features.T @ features
        for stream, rows in centred.items():
            product = (rows.T @ features).double()
            self._cross[stream] = self._cross[stream] + product if stream in self._cross else product

    def tensors(self) -> dict[str, torch.Tensor]:
        """Means: f64 of the features, f64 lower triangle of their products, f32 of their products with each stream."""
        below = torch.tril_indices(*self._product.shape, device=self._product.device)
        found = {
            "token.mean": (self._sum / self._rows).cpu(),
            "token.second": (self._product[below[0], below[1]] / self._rows).cpu(),
        }
        for stream, cross in self._cross.items():
            found[f"{stream}.token"] = (cross / self._rows).float().cpu()
        return found
