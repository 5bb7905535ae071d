"""Writes safetensors files whose bytes depend only on their content, and reads them back.

The public writer keeps metadata in a hash map, whose order changes from run to run; here keys are sorted, the header is
padded to 8 bytes, tensors follow in the order of their names, and the file appears under its name only when complete.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .errors import CollectError

TYPE_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Writes CPU tensors and metadata. Raises KVTC_WRITE_FAILED; no half file is left."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        length = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + length],
        }
        offset += length
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(struct.pack("<Q", len(text)))
            file.write(text)
            for name in sorted(tensors):
                file.write(memoryview(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CollectError("KVTC_WRITE_FAILED", f"{path} could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file. Raises KVTC_FILE_NOT_FOUND, KVTC_OPTION_INVALID."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except OSError as error:
        raise CollectError("KVTC_FILE_NOT_FOUND", f"{path} cannot be read: {error}") from error
    except SafetensorError as error:
        raise CollectError("KVTC_OPTION_INVALID", f"{path} is no safetensors file: {error}") from error
