"""Turns gradients of many documents into metrics and token importances, one saved document at a time.

Every finished document lies in ``OUT.partial/``; an interrupted run goes on from there and ends in the same bytes.
File layout: docs/format/sensitivity.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from . import PRODUCER
from .errors import CollectError
from .gguf_model import ModelFacts
from .gradients import device_of, prefix_rows, sampled_gradients
from .head_order import engine_key_order
from .tensor_file import read_tensors, write_tensors

FORMAT = "kvtc-sensitivity"
VERSION = "1"
#: Added to a head's metric before it is inverted, as a share of its mean diagonal.
FLOOR_SHARE = 0.01
#: A copied passage starts at least this far from either end of the prefix.
COPY_MARGIN = 8
STREAMS = ("key", "value")
PHASES = ("gradients", "importance")


@dataclass(frozen=True)
class Settings:
    """What is measured. Half of the continuation is natural text, half copies a passage of the prefix."""

    prefixTokens: int
    continuationTokens: int
    draws: int
    seed: int
    sinks: int
    window: int
    device: str
    copyWeight: float = 1.0
    stepExponent: float = 0.0

    @property
    def copy_tokens(self) -> int:
        """Tokens of the continuation that repeat a passage of the prefix."""
        return self.continuationTokens // 2

    def position_weights(self) -> torch.Tensor:
        """f32[continuationTokens]: by their squares a copied token counts copyWeight times a natural one."""
        weights = torch.ones(self.continuationTokens)
        weights[self.natural_tokens :] = math.sqrt(self.copyWeight)
        return weights

    @property
    def natural_tokens(self) -> int:
        """Tokens of the continuation that follow the prefix in its document."""
        return self.continuationTokens - self.copy_tokens

    @property
    def document_tokens(self) -> int:
        """Tokens a document must have."""
        return self.prefixTokens + self.natural_tokens

    def check(self) -> None:
        """Raises KVTC_OPTION_INVALID."""
        room = self.prefixTokens - self.copy_tokens - 2 * COPY_MARGIN
        if not (math.isfinite(self.copyWeight) and self.copyWeight >= 0):
            raise CollectError(
                "KVTC_OPTION_INVALID", f"copy weight {self.copyWeight}: expected a number of at least 0"
            )
        if not 0 <= self.stepExponent <= 1:
            raise CollectError("KVTC_OPTION_INVALID", f"step exponent {self.stepExponent}: expected 0 to 1")
        if min(self.draws, self.continuationTokens - 1, room + 1, self.prefixTokens - self.sinks - self.window) < 1:
            raise CollectError(
                "KVTC_OPTION_INVALID",
                f"prefix {self.prefixTokens}, continuation {self.continuationTokens}, draws {self.draws}: draws must "
                "be at least 1, continuation 2, and the prefix longer than sinks + window "
                f"({self.sinks + self.window}) and than half the continuation by {2 * COPY_MARGIN}",
            )


def metadata(facts: ModelFacts, settings: Settings) -> dict[str, str]:
    """Provenance of a run; equal for equal runs."""
    software = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gguf": version("gguf"),
        "numpy": np.__version__,
    }
    parts = {
        "model": facts.as_json(),
        "settings": {**asdict(settings), "floorShare": FLOOR_SHARE, "copyTokens": settings.copy_tokens},
        "software": software,
    }
    text = {key: json.dumps(value, sort_keys=True, separators=(",", ":")) for key, value in parts.items()}
    return {"format": FORMAT, "version": VERSION, "method": "gradient", "producer": PRODUCER, **text}


def continuation_of(document: torch.Tensor, index: int, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """i64[n] continuation ids and f64[draws, n] uniforms of one document, from the seed and its index alone."""
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([settings.seed, index])))
    last = settings.prefixTokens - settings.copy_tokens - COPY_MARGIN
    start = int(random.integers(COPY_MARGIN, last, endpoint=True))
    natural = document[settings.prefixTokens : settings.prefixTokens + settings.natural_tokens]
    copied = document[start : start + settings.copy_tokens]
    uniforms = random.random((settings.draws, settings.continuationTokens))
    return torch.cat([natural, copied]).long(), torch.from_numpy(uniforms)


def measure_document(
    model: Any, facts: ModelFacts, document: torch.Tensor, index: int, settings: Settings
) -> dict[str, torch.Tensor]:
    """One document's sums of g gᵀ, f64 [heads, D, D], and its gradients, bf16 [draws, heads, tokens, D].

    Heads are layers · kvHeads, dimensions in the engine's order, tokens those after the sinks and before the window.
    Raises KVTC_ROWS_NOT_FINITE.
    """
    continuation, uniforms = continuation_of(document, index, settings)
    rows = prefix_rows(model, document[: settings.prefixTokens].long())
    key_order = engine_key_order(facts.keyHeadDim, facts.keyPairing).to(rows.keys.device)
    measured = slice(settings.sinks, settings.prefixTokens - settings.window)
    sums: dict[str, torch.Tensor] = {}
    gradients: dict[str, list[torch.Tensor]] = {stream: [] for stream in STREAMS}
    for gradient in sampled_gradients(model, rows, continuation, uniforms, settings.position_weights()):
        streams = {"key": gradient.keys[..., key_order], "value": gradient.values}
        for stream, tensor in streams.items():
            heads = tensor[:, measured].transpose(1, 2).flatten(0, 1)  # [layers·kvHeads, tokens, D]
            exact = heads.double()
            product = exact.transpose(1, 2) @ exact
            if not torch.isfinite(product).all():
                raise CollectError("KVTC_ROWS_NOT_FINITE", f"document {index}: a {stream} gradient is not finite")
            sums[stream] = sums[stream] + product if stream in sums else product
            gradients[stream].append(heads.to(torch.bfloat16).cpu())
    return {
        **{f"{stream}.sum": sums[stream].cpu() for stream in STREAMS},
        **{f"{stream}.gradients": torch.stack(gradients[stream]) for stream in STREAMS},
    }


def importance(gradients: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """f32[tokens]: Σ over heads of gᵀ (M + 1 % of its mean diagonal)⁻¹ g, averaged over draws.

    ``gradients`` [draws, heads, tokens, D], ``metric`` f64 [heads, D, D]. A head that nothing depends on adds nothing.
    """
    dims = metric.shape[-1]
    mean = metric.diagonal(dim1=1, dim2=2).mean(dim=1)
    live = mean > 0
    identity = torch.eye(dims, dtype=metric.dtype, device=metric.device)
    floored = metric[live] + (FLOOR_SHARE * mean[live])[:, None, None] * identity
    inverse = torch.linalg.inv(torch.linalg.cholesky(floored)).float()
    total = torch.zeros(gradients.shape[2], device=metric.device)
    for draw in gradients:
        whitened = draw[live.to(draw.device)].to(metric.device).float() @ inverse.transpose(1, 2)
        total += whitened.square().sum(dim=(0, 2))
    return (total / len(gradients)).cpu()


def importances(
    partial: Partial, documents: torch.Tensor, metrics: dict[str, torch.Tensor], measured: slice, device: torch.device
) -> dict[str, torch.Tensor]:
    """f32 of the documents' shape per stream, NaN outside the measured tokens."""
    scores = {stream: torch.full(documents.shape, torch.nan) for stream in STREAMS}
    for index in range(len(documents)):
        kept = read_tensors(partial.document(index))[0]
        for stream in STREAMS:
            scores[stream][index, measured] = importance(kept[f"{stream}.gradients"], metrics[stream].to(device))
    return scores


def stepped_metric(
    partial: Partial, stream: str, scores: torch.Tensor, exponent: float, device: torch.device
) -> torch.Tensor:
    """f64 [heads, D, D]: mean of m² g gᵀ, m = (importance / geometric mean)^-exponent the step a token is coded with.

    What errors cost that go as the tokens' steps: else the few tokens that matter most, whose steps are finest, would
    say which directions count in all others. ``scores`` f32[documents, tokens].
    """
    logs = scores.double().clamp(min=torch.finfo(torch.float32).tiny).log()
    weights = (-2 * exponent * (logs - logs.mean())).exp()
    total: torch.Tensor | None = None
    draws = 1
    for index, weight in enumerate(weights):
        gradients = read_tensors(partial.document(index))[0][f"{stream}.gradients"]
        draws = len(gradients)
        for draw in gradients:
            heads = draw.to(device).double()
            product = heads.transpose(1, 2) @ (heads * weight.to(device)[None, :, None])
            total = product if total is None else total + product
    if total is None:
        raise CollectError("KVTC_OPTION_INVALID", "no documents")
    metric = total.cpu() / (draws * weights.numel())
    return (metric + metric.mT) / 2


class Partial:
    """The folder of an unfinished run. Refuses to go on with other documents, settings or software."""

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.path = out.with_name(out.name + ".partial")
        self._fingerprint = fingerprint
        note = self.path / "run.txt"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not note.exists():
                note.write_text(fingerprint)
            found = note.read_text()
        except OSError as error:
            raise CollectError("KVTC_WRITE_FAILED", f"{self.path} cannot be used: {error}") from error
        if found != fingerprint:
            raise CollectError(
                "KVTC_OPTION_INVALID",
                f"{self.path} belongs to a run with other documents, settings or software; delete it or choose "
                "another --out",
            )

    def document(self, index: int) -> Path:
        """Where one document's sums and gradients are kept."""
        return self.path / f"{index:05d}.safetensors"

    def remove(self) -> None:
        """Called when the result is written."""
        shutil.rmtree(self.path)


def collect_sensitivity(
    model: Any,
    facts: ModelFacts,
    documents: torch.Tensor,
    settings: Settings,
    out: Path,
    on_step: Callable[[str, bool], None] = lambda _phase, _found: None,
) -> dict[str, torch.Tensor]:
    """Measures i32[n, T] documents and writes ``out``. Calls ``on_step(phase, found on disk)`` for each document of
    each phase, ``gradients`` and ``importance``.

    Raises CollectError; what was measured before an interruption is kept and used by the next call.
    """
    settings.check()
    about = metadata(facts, settings)
    digest = hashlib.sha256(documents.numpy().tobytes()).hexdigest()
    partial = Partial(out, json.dumps({**about, "documents": digest, "shape": list(documents.shape)}))
    device = device_of(model)
    sums: dict[str, torch.Tensor] = {}
    for index, document in enumerate(documents):
        path = partial.document(index)
        found = path.exists()
        if not found:
            write_tensors(path, measure_document(model, facts, document, index, settings), {})
        kept = read_tensors(path)[0]
        for stream in STREAMS:
            part = kept[f"{stream}.sum"]
            sums[stream] = sums[stream] + part if stream in sums else part
        on_step("gradients", found)
    tokens = settings.prefixTokens - settings.sinks - settings.window
    metrics = {stream: sums[stream] / (tokens * settings.draws * len(documents)) for stream in STREAMS}
    metrics = {stream: (metric + metric.mT) / 2 for stream, metric in metrics.items()}
    measured = slice(settings.sinks, settings.prefixTokens - settings.window)
    scores = importances(partial, documents, metrics, measured, device)
    if settings.stepExponent > 0:
        metrics = {
            stream: stepped_metric(partial, stream, scores[stream][:, measured], settings.stepExponent, device)
            for stream in STREAMS
        }
        scores = importances(partial, documents, metrics, measured, device)
    for _ in documents:
        on_step("importance", False)
    tensors = {
        "documents": documents,
        **{f"{stream}.metric": metrics[stream].float() for stream in STREAMS},
        **{f"{stream}.importance": scores[stream] for stream in STREAMS},
    }
    write_tensors(out, tensors, about)
    partial.remove()
    return tensors
