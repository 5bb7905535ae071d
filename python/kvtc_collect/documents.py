"""The token documents to work on: from a safetensors file, or cut from texts with the GGUF's own vocabulary.

The tokenizer covers the byte-level BPE vocabularies whose splitting rule is known here; for any other, token ids come
from outside (``--documents``). Does not know models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from .errors import CollectError
from .gguf_model import field
from .tensor_file import read_tensors

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: `tokenizer.ggml.pre` → the patterns that cut a text, one after the other, before bytes are merged.
SPLITS: dict[str, tuple[str, ...]] = {
    "gpt-2": (GPT2_SPLIT,),
    "smollm": (r"\p{N}", GPT2_SPLIT),
    "qwen2": (QWEN2_SPLIT,),
}


def gguf_tokenizer(reader: GGUFReader) -> Tokenizer:
    """Plain text to ids as llama.cpp gives them without special tokens. Raises KVTC_MODEL_UNSUPPORTED."""
    kind = field(reader, "tokenizer.ggml.model")
    rule = field(reader, "tokenizer.ggml.pre")
    if kind != "gpt2" or rule not in SPLITS:
        raise CollectError(
            "KVTC_MODEL_UNSUPPORTED",
            f"the file's tokenizer is {kind!r} with rule {rule!r}; known: gpt2 with {', '.join(SPLITS)}. "
            "Give token ids with --documents",
        )
    tokens: list[str] = field(reader, "tokenizer.ggml.tokens", [])
    merges: list[str] = field(reader, "tokenizer.ggml.merges", [])
    ids = {token: id for id, token in enumerate(tokens)}
    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not (left in ids and right in ids and left + right in ids):
            raise CollectError("KVTC_GGUF_MALFORMED", f"merge {merge!r} names tokens that the vocabulary lacks")
        pairs.append((left, right))
    tokenizer = Tokenizer(models.BPE(ids, pairs))
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[rule]]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


def read_documents(path: Path, needed_tokens: int, count: int | None, vocabulary: int) -> torch.Tensor:
    """i32[n, T], the first ``count`` rows (all for None) of the tensor ``documents``.

    Raises KVTC_FILE_NOT_FOUND, KVTC_OPTION_INVALID, KVTC_CALIBRATION_TEXT_SHORT.
    """
    documents = read_tensors(path)[0].get("documents")
    if documents is None or documents.dtype != torch.int32 or documents.ndim != 2:
        got = "no such tensor" if documents is None else f"{documents.dtype} {list(documents.shape)}"
        raise CollectError("KVTC_OPTION_INVALID", f"{path} must hold documents, i32 [n, T]; got {got}")
    wanted = len(documents) if count is None else count
    if len(documents) < max(1, wanted) or documents.shape[1] < needed_tokens:
        raise CollectError(
            "KVTC_CALIBRATION_TEXT_SHORT",
            f"{path} holds {len(documents)} documents of {documents.shape[1]} tokens; "
            f"needed are {wanted} of at least {needed_tokens}",
        )
    documents = documents[:wanted].contiguous()
    low, high = int(documents.min()), int(documents.max())
    if low < 0 or high >= vocabulary:
        raise CollectError("KVTC_OPTION_INVALID", f"{path} has ids {low}…{high}; the model has 0…{vocabulary - 1}")
    return documents


def cut_documents(paths: Sequence[Path], tokenizer: Tokenizer, length: int, count: int) -> torch.Tensor:
    """i32[count, length]: ``length`` tokens of every text before more of any, so that no few texts make the sample.

    Paths take turns, a folder giving its files by name; a text that is used up is left out of later rounds. Texts are
    joined by blank lines and the whole is cut, so a document may hold the end of one text and the start of the next.
    Raises KVTC_FILE_NOT_FOUND, KVTC_CALIBRATION_TEXT_SHORT.
    """
    needed = count * length
    texts = in_turn([text_files(path) for path in paths])
    rest: dict[Path, list[int]] = {}
    ids: list[int] = []
    while texts and len(ids) < needed:
        for file in texts:
            if len(ids) >= needed:
                break
            if file not in rest:
                text = file.read_bytes().decode("utf-8", errors="replace")
                rest[file] = tokenizer.encode(text + "\n\n", add_special_tokens=False).ids
            ids.extend(rest[file][:length])
            rest[file] = rest[file][length:]
        texts = [file for file in texts if rest.get(file)]
    if len(ids) < needed:
        raise CollectError(
            "KVTC_CALIBRATION_TEXT_SHORT",
            f"the texts give {len(ids)} tokens; {count} documents of {length} need {needed}",
        )
    return torch.tensor(ids[:needed], dtype=torch.int32).reshape(count, length)


def text_files(path: Path) -> list[Path]:
    """A file, or a folder's files by name. Raises KVTC_FILE_NOT_FOUND."""
    if not path.exists():
        raise CollectError("KVTC_FILE_NOT_FOUND", f"--text {path} does not exist")
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def in_turn(lists: Sequence[Sequence[Path]]) -> list[Path]:
    """The first of every list, then the second of every list that has one, and so on."""
    longest = max(map(len, lists), default=0)
    return [files[i] for i in range(longest) for files in lists if i < len(files)]
