"""Write a safetensors file tensor by tensor: hashed beside, synced, and failing with the system's own errors.

The library's writer needs the whole file in memory for the hash, wraps errno into text, and refuses tied weights. The format:
the header's length as a little-endian uint64, the header as JSON, then the tensors' bytes
(https://huggingface.co/docs/safetensors). Reading is the library's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16",
    torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64",
}  # fmt: skip
"""As a header names the types of numbers."""
_TOGETHER = 1 << 20  # bytes: what is smaller is written and hashed with what comes next
_AHEAD = 256 << 20  # bytes that may be written and not yet hashed: on a GPU's host they are copies


class Written(NamedTuple):
    """A file as it was written: its SHA-256 in hex, and its size."""

    sha256: str
    bytes: int


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Written:
    """A safetensors file, synced to disk. Tied tensors are written under each of their names. Raises OSError."""
    return write(path, _chunks(tensors, metadata))


def write(path: Path, chunks: Iterator[bytes | memoryview]) -> Written:
    """A new file of these bytes, synced to disk. Another thread hashes them meanwhile: it takes as long. Raises OSError."""
    sha = hashlib.sha256()
    size = behind = 0
    waiting: deque[tuple[Future[None], int]] = deque()
    with ThreadPoolExecutor(1) as beside, path.open("xb") as file:
        for chunk in _joined(chunks):
            waiting.append((beside.submit(sha.update, chunk), len(chunk)))
            behind += len(chunk)
            file.write(chunk)
            size += len(chunk)
            while behind > _AHEAD:
                hashed, length = waiting.popleft()
                hashed.result()
                behind -= length
        file.flush()
        os.fsync(file.fileno())
    return Written(sha.hexdigest(), size)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _joined(chunks: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The same bytes, in pieces that are worth another thread's turn."""
    small: list[bytes | memoryview] = []
    size = 0
    for chunk in chunks:
        large = len(chunk) >= _TOGETHER
        if not large:
            small.append(chunk)
            size += len(chunk)
        if size >= _TOGETHER or (large and small):
            yield b"".join(small)
            small, size = [], 0
        if large:
            yield chunk
    if small:
        yield b"".join(small)


def _chunks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    types = {name: _type_of(name, tensor) for name, tensor in tensors.items()}
    # Widest elements first, as the library has it: then each tensor lies at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": types[name], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if len(flat):
            yield flat.view(torch.uint8).numpy().data


def _type_of(name: str, tensor: object) -> str:
    if not isinstance(tensor, Tensor) or tensor.dtype not in _TYPES:
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"'{name}' of the model's state is {kind}; a safetensors file holds plain tensors alone")
    return _TYPES[tensor.dtype]
