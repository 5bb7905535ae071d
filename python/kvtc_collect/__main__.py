"""Command line: ``python -m kvtc_collect sensitivity|moments MODEL.gguf … --out FILE``."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from .errors import CollectError


def parser() -> argparse.ArgumentParser:
    """Arguments of both verbs."""
    root = argparse.ArgumentParser(prog="kvtc_collect", description=__doc__)
    verbs = root.add_subparsers(dest="verb", required=True)
    sensitivity = verbs.add_parser("sensitivity", help="metric blocks and token importances by gradients")
    moments = verbs.add_parser("moments", help="first and second moments of the cache rows")
    for verb in (sensitivity, moments):
        verb.add_argument("model", type=Path, metavar="MODEL.gguf")
        texts = verb.add_mutually_exclusive_group(required=True)
        texts.add_argument("--documents", type=Path, help="safetensors with documents i32 [n, T]: token ids")
        texts.add_argument("--text", type=Path, nargs="+", help="text files or folders, which take turns")
        verb.add_argument("--documents-count", type=int, help="default: all of --documents, 48 of --text")
        verb.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
        verb.add_argument("--sinks", type=int, default=4, help="first tokens left out (default 4)")
        verb.add_argument("--out", type=Path, required=True)
        verb.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
        verb.add_argument("--json", action="store_true", help="one JSON object on stdout, no progress")
    sensitivity.add_argument("--prefix", type=int, default=3072, help="tokens whose cache is differentiated")
    sensitivity.add_argument("--continuation", type=int, default=1024, help="half natural, half copied")
    sensitivity.add_argument(
        "--copy-weight", type=float, default=1.0, help="what a copied token counts for, a natural one being 1 (default 1)"
    )
    sensitivity.add_argument(
        "--step-exponent",
        type=float,
        default=0.3,
        help="weigh tokens by the steps that importance to this power gives them (default 0.3; 0: alike)",
    )
    sensitivity.add_argument("--draws", type=int, default=2)
    sensitivity.add_argument("--seed", type=int, default=11)
    sensitivity.add_argument("--window", type=int, default=0, help="last tokens of the prefix left out (default 0)")
    moments.add_argument("--document-tokens", type=int, default=4096, help="with --text (default 4096)")
    return root


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """Does what the arguments ask for; returns what ``--json`` prints."""
    started = time.monotonic()
    os.environ.setdefault("TQDM_DISABLE", "1")  # the loading library's own bars, read when it is imported
    try:
        import torch

        from . import documents as texts
        from . import gguf_model, moments, sensitivity
        from .progress import Progress
    except ImportError as error:
        raise CollectError(
            "KVTC_ENGINE_MISSING", f"{error}; install the packages of python/kvtc_collect/requirements.txt"
        ) from error
    settings: Any = None
    if arguments.verb == "sensitivity":
        settings = sensitivity.Settings(
            prefixTokens=arguments.prefix,
            continuationTokens=arguments.continuation,
            draws=arguments.draws,
            seed=arguments.seed,
            sinks=arguments.sinks,
            window=arguments.window,
            device=arguments.device,
            copyWeight=arguments.copy_weight,
            stepExponent=arguments.step_exponent,
        )
        settings.check()
    for name in ("documents_count", "threads", "document_tokens"):
        value = getattr(arguments, name, None)
        if value is not None and value < 1:
            raise CollectError("KVTC_OPTION_INVALID", f"--{name.replace('_', '-')} must be at least 1")
    if min(arguments.sinks, getattr(arguments, "window", 0), getattr(arguments, "seed", 0)) < 0:
        raise CollectError("KVTC_OPTION_INVALID", "--sinks, --window and --seed must not be negative")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    reader = gguf_model.open_gguf(arguments.model)
    facts = gguf_model.read_facts(reader, arguments.model)
    vocabulary = len(gguf_model.field(reader, "tokenizer.ggml.tokens", []))
    if arguments.documents is not None:
        needed = settings.document_tokens if settings else arguments.sinks + 1
        documents = texts.read_documents(arguments.documents, needed, arguments.documents_count, vocabulary)
    else:
        length = arguments.prefix + arguments.continuation if settings else arguments.document_tokens
        tokenizer = texts.gguf_tokenizer(reader)
        documents = texts.cut_documents(arguments.text, tokenizer, length, arguments.documents_count or 48)
    model = gguf_model.load_model(arguments.model, facts, reader, arguments.device)
    loaded = time.monotonic()
    report: dict[str, object] = {"out": str(arguments.out), "documents": len(documents), "model": facts.as_json()}
    if settings:
        phases = {phase: Progress(phase, len(documents), quiet=arguments.json) for phase in sensitivity.PHASES}

        def on_step(phase: str, found: bool) -> None:
            phases[phase].step(found=found)
            if phase == "gradients":
                phases["importance"].begin()

        sensitivity.collect_sensitivity(model, facts, documents, settings, arguments.out, on_step)
    else:
        progress = Progress("moments", len(documents), quiet=arguments.json)
        moments.collect_moments(model, facts, documents, arguments.sinks, arguments.out, progress.step)
    report["loadSeconds"] = round(loaded - started, 1)
    report["collectSeconds"] = round(time.monotonic() - loaded, 1)
    report["peakRssBytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if arguments.device == "cuda":
        report["peakDeviceBytes"] = torch.cuda.max_memory_allocated()
    return report


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 failure, 2 usage, 3 bad input."""
    arguments = parser().parse_args(argv)
    try:
        report = run(arguments)
    except KeyboardInterrupt:
        error = CollectError("KVTC_ABORTED", "interrupted; finished documents are kept, run the same command again")
    except CollectError as raised:
        error = raised
    else:
        if arguments.json:
            print(json.dumps(report))
        else:
            print(f"wrote {report['out']} in {report['collectSeconds']} s", file=sys.stderr)
        return 0
    if arguments.json:
        print(json.dumps({"error": {"code": error.code, "message": error.message}}))
    else:
        print(f"{error.message} ({error.code})", file=sys.stderr)
    return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
