"""The idx format of MNIST and its kin, plain or gzipped.

Format: two zero bytes, a type (8 = uint8), the number of dimensions, each dimension as a big-endian uint32, then the values
(http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

_UINT8 = 8


class IdxError(ValueError):
    """A file that is no sound idx file; the message names it."""


def find(folder: Path, name: str) -> Path | None:
    """`name` in `folder`, plain or as `.gz`."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read(path: Path, dimensions: int) -> Tensor:
    """The uint8 tensor in the file. Raises IdxError where its header, or its length, is not as the format has it."""
    try:
        with cast("BinaryIO", gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            shape = _header(file, path, dimensions)
            values = file.read(math.prod(shape) + 1)
    except (EOFError, zlib.error, OSError) as error:
        raise IdxError(f"{path.name} is damaged: {error}") from None
    if len(values) != math.prod(shape):
        have = f"{len(values)}" if len(values) < math.prod(shape) else "more"
        raise IdxError(f"{path.name} is damaged: its header announces {math.prod(shape)} bytes, it has {have}")
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).view(shape) if values else torch.empty(shape, dtype=torch.uint8)


def _header(file: BinaryIO, path: Path, dimensions: int) -> tuple[int, ...]:
    magic = file.read(4)
    if magic != bytes([0, 0, _UINT8, dimensions]):
        raise IdxError(f"{path.name} is no idx file of {dimensions} dimensions of bytes: it starts with 0x{magic.hex()}")
    lengths = file.read(4 * dimensions)
    if len(lengths) != 4 * dimensions:
        raise IdxError(f"{path.name} is damaged: it ends within its header")
    return tuple(int.from_bytes(lengths[i : i + 4], "big") for i in range(0, len(lengths), 4))
