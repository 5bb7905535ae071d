"""Tests on tiny random models. Run from ``python/``: ``python -m pytest kvtc_collect/tests``."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch

from kvtc_collect.__main__ import main
from kvtc_collect.compare_profile import compare, covariance
from kvtc_collect.documents import cut_documents, gguf_tokenizer
from kvtc_collect.errors import CollectError
from kvtc_collect.gguf_model import ModelFacts, check_weights, load_model, open_gguf, read_facts
from kvtc_collect.gradients import (
    Rows,
    continuation_log_probabilities,
    prefix_rows,
    sample_targets,
    sampled_gradients,
)
from kvtc_collect.head_order import HALF_SPLIT, INTERLEAVED, engine_key_order, transformers_key_order
from kvtc_collect.moments import collect_moments, document_rows
from kvtc_collect.sensitivity import Settings, collect_sensitivity, continuation_of, importance
from kvtc_collect.tensor_file import read_tensors, write_tensors
from kvtc_collect.token_features import token_features

from . import tiny_gguf as tiny

SETTINGS = Settings(prefixTokens=48, continuationTokens=16, draws=2, seed=11, sinks=4, window=8, device="cpu")


def slope(
    model: Any, rows: Rows, direction: Rows, continuation: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> float:
    """Derivative of the targets' weighted log probability along a direction, by finite differences.

    The models' norms compute in f32, so steps cannot be tiny; two sizes cancel the cubic term.
    """

    def total(size: float) -> float:
        moved = Rows(rows.keys + size * direction.keys, rows.values + size * direction.values)
        with torch.no_grad():
            found = continuation_log_probabilities(model, moved, continuation)
        return float((found.gather(1, targets[:, None])[:, 0] * weights).sum())

    near, far = ((total(size) - total(-size)) / (2 * size) for size in (0.01, 0.02))
    return (4 * near - far) / 3


class CollectTests(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.addCleanup(self._folder.cleanup)
        self.folder = Path(self._folder.name)

    def tiny(self, architecture: str) -> tuple[Any, ModelFacts, dict[str, np.ndarray], Path]:
        path = self.folder / f"{architecture}.gguf"
        tensors = tiny.write_tiny_gguf(path, architecture)
        reader = open_gguf(path)
        facts = read_facts(reader, path)
        return load_model(path, facts, reader, "cpu"), facts, tensors, path

    def documents(self, count: int = 3) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng(5).integers(0, tiny.VOCABULARY, (count, 64), dtype=np.int32))

    def assert_code(self, code: str, call: Any) -> None:
        with self.assertRaises(CollectError) as caught:
            call()
        self.assertEqual(caught.exception.code, code)

    def test_key_orders_are_inverse_and_pair_what_rope_turns(self) -> None:
        for pairing in (INTERLEAVED, HALF_SPLIT):
            there, back = engine_key_order(10, pairing), transformers_key_order(10, pairing)
            self.assertEqual(there[back].tolist(), list(range(10)))
        self.assertEqual(engine_key_order(8, INTERLEAVED).tolist(), [0, 4, 1, 5, 2, 6, 3, 7])

    def test_first_layer_rows_are_the_products_of_the_files_own_weight_rows(self) -> None:
        for architecture in ("llama", "qwen2", "qwen3"):
            model, facts, tensors, _ = self.tiny(architecture)
            document = self.documents(1)[0]
            rows = document_rows(model, facts, document, sinks=0)
            hidden = tensors["token_embd.weight"][document.numpy()].astype(np.float64)
            hidden /= np.sqrt((hidden**2).mean(axis=1, keepdims=True) + 1e-5)
            hidden *= tensors["blk.0.attn_norm.weight"]
            for stream, name in (("key", "attn_k"), ("value", "attn_v")):
                expected = hidden @ tensors[f"blk.0.{name}.weight"].T
                expected += tensors.get(f"blk.0.{name}.bias", 0)
                if architecture == "qwen3" and stream == "key":
                    heads = expected.reshape(64, tiny.KV_HEADS, -1)
                    heads = heads / np.sqrt((heads**2).mean(axis=2, keepdims=True) + 1e-5)
                    expected = (heads * tensors["blk.0.attn_k_norm.weight"]).reshape(64, -1)
                found = rows[stream][:, : expected.shape[1]].double().numpy()
                np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=f"{architecture} {stream}")

    def test_a_model_loaded_in_another_order_is_refused(self) -> None:
        model, facts, _, path = self.tiny("llama")
        wrong = replace(facts, keyPairing=HALF_SPLIT)
        self.assert_code("KVTC_ENGINE_FAILED", lambda: check_weights(model, wrong, open_gguf(path), path))

    def test_continuation_on_cached_rows_says_what_one_uncut_pass_says(self) -> None:
        model, _, _, _ = self.tiny("llama")
        document = self.documents(1)[0].long()
        rows = prefix_rows(model, document[:48])
        with torch.no_grad():
            cut = continuation_log_probabilities(model, rows, document[48:])
            whole = torch.log_softmax(model(document[None]).logits[0], dim=-1)[48:]
        torch.testing.assert_close(cut, whole, atol=2e-5, rtol=0)

    def test_gradients_agree_with_finite_differences(self) -> None:
        for architecture in ("llama", "qwen2", "qwen3"):
            model, _, _, _ = self.tiny(architecture)
            model = model.double()
            document = self.documents(1)[0]
            continuation, uniforms = continuation_of(document, 0, SETTINGS)
            rows = prefix_rows(model, document[:48].long())
            weights = replace(SETTINGS, copyWeight=0.25).position_weights()
            self.assertEqual(weights.tolist(), [1.0] * 8 + [0.5] * 8)
            gradients = list(sampled_gradients(model, rows, continuation, uniforms, weights))
            with torch.no_grad():
                targets = [
                    sample_targets(continuation_log_probabilities(model, rows, continuation), u) for u in uniforms
                ]
            self.assertFalse(torch.equal(targets[0], targets[1]))

            random = torch.Generator().manual_seed(1)
            zero = torch.zeros_like(rows.keys)
            for gradient, drawn in zip(gradients, targets, strict=True):
                # Along the gradient itself the slope is its length; along any other direction, its share.
                for keys, values in ((gradient.keys, zero), (zero, gradient.values)):
                    length = float(torch.cat([keys, values]).norm())
                    found = slope(model, rows, Rows(keys / length, values / length), continuation, drawn, weights)
                    self.assertGreater(length, 1e-3)
                    self.assertAlmostEqual(found / length, 1, delta=1e-3, msg=architecture)
                aside = Rows(*(torch.randn(rows.keys.shape, generator=random, dtype=torch.float64) for _ in range(2)))
                predicted = float((gradient.keys * aside.keys + gradient.values * aside.values).sum())
                found = slope(model, rows, aside, continuation, drawn, weights)
                self.assertAlmostEqual(found / predicted, 1, delta=1e-3, msg=architecture)

    def test_metrics_are_symmetric_positive_and_normalise_the_importances(self) -> None:
        model, facts, _, _ = self.tiny("llama")
        out = self.folder / "out.safetensors"
        tensors = collect_sensitivity(model, facts, self.documents(), SETTINGS, out)
        measured = slice(SETTINGS.sinks, SETTINGS.prefixTokens - SETTINGS.window)
        for stream in ("key", "value"):
            metric = tensors[f"{stream}.metric"].double()
            self.assertEqual(list(metric.shape), [tiny.LAYERS * tiny.KV_HEADS, tiny.HEAD_DIM, tiny.HEAD_DIM])
            torch.testing.assert_close(metric, metric.mT, atol=0, rtol=0)
            values = torch.linalg.eigvalsh(metric)
            self.assertTrue((values[:, -1] > 0).all())
            self.assertGreater(float(values.min()), -1e-6 * float(values.max()))
            scores = tensors[f"{stream}.importance"]
            inside = scores[:, measured]
            self.assertTrue(torch.isfinite(inside).all() and (inside > 0).all())
            self.assertEqual(int(scores.isnan().sum()), scores.numel() - inside.numel())
            # The mean of gᵀ(M + floor)⁻¹g over what M was averaged from is the trace of M(M + floor)⁻¹.
            floor = 0.01 * metric.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] * torch.eye(tiny.HEAD_DIM)
            expected = torch.linalg.solve(metric + floor, metric).diagonal(dim1=1, dim2=2).sum()
            self.assertAlmostEqual(float(inside.double().mean() / expected), 1, delta=0.01)

    def test_a_metric_weighs_tokens_by_their_steps(self) -> None:
        model, facts, _, _ = self.tiny("llama")
        plain = replace(SETTINGS, window=0)
        even = collect_sensitivity(model, facts, self.documents(), plain, self.folder / "even.safetensors")
        stepped = collect_sensitivity(
            model, facts, self.documents(), replace(plain, stepExponent=0.3), self.folder / "stepped.safetensors"
        )
        measured = slice(SETTINGS.sinks, SETTINGS.prefixTokens)
        for stream in ("key", "value"):
            logs = even[f"{stream}.importance"][:, measured].double().log()
            weights = (-0.6 * (logs - logs.mean())).exp()
            self.assertGreater(float(weights.max() / weights.min()), 2)
            metric = stepped[f"{stream}.metric"].double()
            floor = 0.01 * metric.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] * torch.eye(tiny.HEAD_DIM)
            expected = torch.linalg.solve(metric + floor, metric).diagonal(dim1=1, dim2=2).sum()
            # As for an even metric, but in the mean that its tokens were weighed in.
            inside = stepped[f"{stream}.importance"][:, measured].double()
            self.assertAlmostEqual(float((weights * inside).mean() / expected), 1, delta=0.01)

    def test_a_head_nothing_depends_on_adds_nothing(self) -> None:
        gradients = torch.ones(1, 2, 3, 4)
        metric = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
        metric[1] = 0
        torch.testing.assert_close(importance(gradients, metric), torch.full((3,), 4 / 1.01))

    def test_an_interrupted_run_resumes_to_the_same_bytes(self) -> None:
        model, facts, _, _ = self.tiny("llama")
        whole, resumed = self.folder / "whole.safetensors", self.folder / "resumed.safetensors"
        collect_sensitivity(model, facts, self.documents(), SETTINGS, whole)

        def interrupt(phase: str, found: bool) -> None:
            raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):
            collect_sensitivity(model, facts, self.documents(), SETTINGS, resumed, interrupt)
        self.assertFalse(resumed.exists())
        found_on_disk: list[bool] = []
        collect_sensitivity(
            model, facts, self.documents(), SETTINGS, resumed, lambda _p, found: found_on_disk.append(found)
        )
        self.assertEqual(found_on_disk[:3], [True, False, False])
        self.assertEqual(resumed.read_bytes(), whole.read_bytes())
        self.assertEqual(sorted(p.suffix for p in self.folder.iterdir()), [".gguf", ".safetensors", ".safetensors"])

    def test_a_partial_run_of_other_settings_is_refused(self) -> None:
        model, facts, _, _ = self.tiny("llama")
        out = self.folder / "out.safetensors"

        def interrupt(phase: str, found: bool) -> None:
            raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):
            collect_sensitivity(model, facts, self.documents(), SETTINGS, out, interrupt)
        other = replace(SETTINGS, seed=12)
        self.assert_code("KVTC_OPTION_INVALID", lambda: collect_sensitivity(model, facts, self.documents(), other, out))

    def test_moments_are_those_of_the_rows(self) -> None:
        model, facts, _, _ = self.tiny("qwen2")
        documents = self.documents()
        tensors = collect_moments(model, facts, documents, 4, self.folder / "moments.safetensors")
        for stream in ("key", "value"):
            rows = torch.cat([document_rows(model, facts, d, 4)[stream] for d in documents]).double()
            mean, cov = covariance(tensors, stream)
            torch.testing.assert_close(mean, rows.mean(dim=0))
            torch.testing.assert_close(cov, torch.cov(rows.T, correction=0), atol=1e-6, rtol=1e-5)
            values, vectors = torch.linalg.eigh(cov)
            best = {
                f"{stream}.mean": mean,
                f"{stream}.variances": values.flip(0)[:8],
                f"{stream}.basis": vectors.flip(1).T[:8],
            }
            result = compare(tensors, best, stream)
            self.assertLess(max(abs(b - c) for _, c, b in result.ranks), 1e-9)
            worse = compare(tensors, {**best, f"{stream}.basis": vectors.T[:8]}, stream)
            self.assertGreater(max(b - c for _, c, b in worse.ranks), 0.1)
            features = torch.cat([token_features(model, d.long())[4:] for d in documents]).double()
            shifted = rows - tensors[f"{stream}.shift"].double()
            cross = tensors[f"{stream}.token"].double()
            torch.testing.assert_close(cross, shifted.T @ features / len(rows), atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(tensors["token.mean"], features.mean(dim=0))

    def test_features_are_the_embeddings_of_a_token_and_its_predecessor(self) -> None:
        model, _, weights, _ = self.tiny("llama")
        ids = self.documents(1)[0].long()
        features = token_features(model, ids)
        table = torch.from_numpy(np.array(weights["token_embd.weight"], dtype=np.float32))[ids]
        own = table / table.square().mean(dim=1, keepdim=True).sqrt()
        before = torch.cat([torch.zeros_like(own[:1]), own[:-1]])
        torch.testing.assert_close(features, torch.cat([own, before], dim=1))

    def test_texts_take_turns(self) -> None:
        *_, path = self.tiny("llama")
        tokenizer = gguf_tokenizer(open_gguf(path))
        for name, text in (("a/1", "A" * 6), ("a/2", "B" * 9), ("b/1", "C" * 2), ("b/2", "D" * 6)):
            file = self.folder / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        folders = [self.folder / "a", self.folder / "b"]
        documents = cut_documents(folders, tokenizer, 4, 5)
        names = {ord(letter) - 33: letter for letter in "ABCD"}
        read = "".join(names.get(int(id), "-") for id in documents.flatten())
        # Four of each text, or the whole of it and its blank line; then what is left of each.
        self.assertEqual(read.replace("-", ""), "AAAACCBBBBDDDDAABBBB"[: len(read.replace("-", ""))])
        self.assert_code("KVTC_CALIBRATION_TEXT_SHORT", lambda: cut_documents(folders, tokenizer, 4, 9))
        self.assert_code("KVTC_FILE_NOT_FOUND", lambda: cut_documents([self.folder / "c"], tokenizer, 4, 1))

    def test_the_command_line_measures_and_reports(self) -> None:
        *_, path = self.tiny("llama")
        write_tensors(self.folder / "d.safetensors", {"documents": self.documents()}, {})
        out = self.folder / "out.safetensors"
        common = [str(path), "--documents", str(self.folder / "d.safetensors"), "--out", str(out), "--json"]
        sizes = ["--prefix", "48", "--continuation", "16", "--window", "8"]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self.assertEqual(main(["sensitivity", *common, *sizes, "--documents-count", "2"]), 0)
        self.assertEqual(json.loads(printed.getvalue())["documents"], 2)
        tensors, about = read_tensors(out)
        self.assertEqual(about["format"], "kvtc-sensitivity")
        self.assertEqual(json.loads(about["model"])["architecture"], "llama")
        self.assertEqual(list(tensors["documents"].shape), [2, 64])
        for status, code, arguments in (
            (2, "KVTC_OPTION_INVALID", ["sensitivity", *common, "--prefix", "48", "--continuation", "16", "--window", "44"]),
            (2, "KVTC_CALIBRATION_TEXT_SHORT", ["sensitivity", *common, *sizes, "--documents-count", "9"]),
            (3, "KVTC_GGUF_MALFORMED", ["moments", str(out), *common[1:]]),
            (2, "KVTC_FILE_NOT_FOUND", ["moments", "none.gguf", *common[1:]]),
        ):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                self.assertEqual(main(arguments), status)
            self.assertEqual(json.loads(printed.getvalue())["error"]["code"], code)

    def test_models_with_other_rows_are_refused(self) -> None:
        for extra, code in (
            ({"rope.dimension_count": 4}, "KVTC_ROPE_UNSUPPORTED"),
            ({"attention.sliding_window": 128}, "KVTC_MODEL_UNSUPPORTED"),
        ):
            path = self.folder / "odd.gguf"
            tiny.write_tiny_gguf(path, "llama", extra)
            self.assert_code(code, lambda path=path: read_facts(open_gguf(path), path))
        path = self.folder / "bert.gguf"
        tiny.write_tiny_gguf(path, "bert")
        self.assert_code("KVTC_MODEL_UNSUPPORTED", lambda: read_facts(open_gguf(path), path))

    def test_the_tokenizer_merges_only_what_the_file_merges(self) -> None:
        *_, path = self.tiny("llama")
        tokenizer = gguf_tokenizer(open_gguf(path))
        self.assertEqual(tokenizer.encode("BAB1").ids, [ord("B") - 33, tiny.VOCABULARY - 1, ord("1") - 33])


if __name__ == "__main__":
    unittest.main()
