"""Check: does a profile's basis fit moments taken here? ``python -m kvtc_collect.compare_profile MOMENTS PROFILE``.

Both must come from the same documents. For each stream it prints, at several ranks, the share of the energy that the
profile's leading components capture under these moments, the share that the best basis captures, and the profile's own
variances against the variances measured here. Exits with 1 when a share falls short by more than the tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import CollectError
from .tensor_file import read_tensors

STREAMS = ("key", "value")
SHARES_OF_RANK = (0.02, 0.1, 0.25, 0.5, 1.0)


def covariance(moments: dict[str, torch.Tensor], stream: str) -> tuple[torch.Tensor, torch.Tensor]:
    """f64 mean [p] and covariance [p, p] from the shift, mean and packed triangle on file."""
    mean = moments[f"{stream}.mean"]
    width = len(mean)
    full = torch.zeros(width, width, dtype=torch.float64)
    below = torch.tril_indices(width, width)
    full[below[0], below[1]] = moments[f"{stream}.second"]
    full = full + full.tril(-1).T
    return moments[f"{stream}.shift"].double() + mean, full - torch.outer(mean, mean)


@dataclass(frozen=True)
class Comparison:
    """Shares of the energy at some ranks, and how far means and variances are apart."""

    ranks: list[tuple[int, float, float]]  # (rank, captured by the profile, captured by the best basis)
    mean_distance: float
    variance_distance: float


def compare(moments: dict[str, torch.Tensor], profile: dict[str, torch.Tensor], stream: str) -> Comparison:
    """Judges one stream of a profile by moments."""
    mean, cov = covariance(moments, stream)
    basis = profile[f"{stream}.basis"].double()
    captured = ((basis @ cov) * basis).sum(dim=1)
    best = torch.linalg.eigvalsh(cov).flip(0)
    total = cov.trace()
    rows = []
    for share in SHARES_OF_RANK:
        rank = max(1, round(share * len(basis)))
        rows.append((rank, float(captured[:rank].sum() / total), float(best[:rank].sum() / total)))
    variances = profile[f"{stream}.variances"].double()
    return Comparison(
        ranks=rows,
        mean_distance=float((profile[f"{stream}.mean"].double() - mean).square().sum() / total),
        variance_distance=float((variances - captured).abs().sum() / captured.sum()),
    )


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 within tolerance, 1 not."""
    parser = argparse.ArgumentParser(prog="kvtc_collect.compare_profile", description=__doc__)
    parser.add_argument("moments", type=Path)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.002, help="energy share that may be missing (0.002)")
    arguments = parser.parse_args(argv)
    try:
        moments, about = read_tensors(arguments.moments)
        profile, of_profile = read_tensors(arguments.profile)
    except CollectError as error:
        print(f"{error.message} ({error.code})", file=sys.stderr)
        return error.exit_status
    if json.loads(about["model"])["fingerprint"] != json.loads(of_profile["model"])["fingerprint"]:
        print("the files are of different models (KVTC_MODEL_MISMATCH)", file=sys.stderr)
        return 3
    worst = 0.0
    for stream in STREAMS:
        result = compare(moments, profile, stream)
        print(
            f"{stream}: mean off by {result.mean_distance:.2e} of the energy, "
            f"variances by {result.variance_distance:.2%}"
        )
        for rank, captured, best in result.ranks:
            print(f"  rank {rank:5d}: profile {captured:.5f}, best {best:.5f}")
            worst = max(worst, best - captured)
    print(f"largest shortfall {worst:.5f}, tolerance {arguments.tolerance}")
    return 0 if worst <= arguments.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
