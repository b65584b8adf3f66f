"""Read files of weights: names, shapes and dtypes first, tensors when they are asked for.

Safetensors are read by their header; pickles by `torch.load(weights_only=True)` alone. There is no way round it: a file that
holds more than tensors is refused with the names of what it holds.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.errors import SpecError
from core.tensorfile import sha256_of

POINTER = "/pretrained/source"
SUFFIXES = (".safetensors", ".pt", ".pth")
_CONTAINERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "ema")
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None


@dataclass(frozen=True)
class Source:
    """Pretrained weights. `tensors` reads them, on the CPU; `entries` needed no more than the header."""

    name: str
    format: Literal["safetensors", "torch", "torchvision", "timm"]
    entries: Mapping[str, Entry]
    tensors: Callable[[], Mapping[str, Tensor]]
    sha256: str | None = None
    classes: tuple[str, ...] | None = None
    """Names of the classes that its head tells apart, where that is known."""


def read_file(source: str, path: Path, shown: str, shapes_only: bool) -> Source:
    """The weights in a file that people know as `shown`. Raises SpecError at /pretrained/source."""
    if path.suffix not in SUFFIXES or not path.is_file():
        raise SpecError.at(POINTER, f"'{shown}' is no file of weights; those end in {', '.join(SUFFIXES)}")
    sha256 = None if shapes_only else sha256_of(path)
    if path.suffix == ".safetensors":
        return read_safetensors(source, path, shown, sha256)
    state = load_pickle(path, shown)
    entries = {key: Entry(tuple(value.shape), value.dtype) for key, value in state.items()}
    return Source(source, "torch", entries, lambda: state, sha256)


def read_safetensors(source: str, path: Path, shown: str, sha256: str | None, classes: tuple[str, ...] | None = None) -> Source:
    """The weights in a safetensors file, whose header alone is read here. Raises SpecError at /pretrained/source."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (it is no dict)
            entries = {key: Entry(tuple(one.get_shape()), _DTYPES.get(one.get_dtype())) for key, one in slices.items()}
    except (OSError, SafetensorError) as error:
        raise SpecError.at(POINTER, f"'{shown}' cannot be read as safetensors: {error}") from None

    def tensors() -> Mapping[str, Tensor]:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in entries}

    return Source(source, "safetensors", entries, tensors, sha256, classes)


def load_pickle(path: Path, shown: str) -> Mapping[str, Tensor]:
    """The state dict in a .pt or .pth file, on the CPU, mapped and not read where the format allows it."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise SpecError.at(POINTER, f"'{shown}' {_why_refused(str(error))}") from None
    except Exception as error:  # a damaged file raises whatever the unpickler stumbles over
        raise SpecError.at(POINTER, f"'{shown}' cannot be read: {type(error).__name__}: {error}") from None
    return _unwrap(found, shown)


def _why_refused(message: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", message)
    if not named:
        said = re.search(r"WeightsUnpickler error: (.*)", message)
        return "is no file of tensors that torch.save wrote" + (f" ({said[1].strip()})" if said and said[1].strip() else "")
    return (
        f"holds more than tensors ({named[1]}), and to load that would run code from the file; "
        "save the state_dict() alone, best as safetensors"
    )


def _unwrap(found: object, shown: str) -> Mapping[str, Tensor]:
    """The state dict itself, out of the usual containers."""
    if not isinstance(found, Mapping):
        raise SpecError.at(POINTER, f"'{shown}' holds a {type(found).__name__}, not a state dict")
    inside = {key: _tensors(found[key]) for key in _CONTAINERS if isinstance(found.get(key), Mapping)}
    candidates = {key: state for key, state in inside.items() if state}
    if len(candidates) > 1:
        names = ", ".join(candidates)
        raise SpecError.at(POINTER, f"'{shown}' holds more than one state dict ({names}); save the one that is meant to a file")
    state = next(iter(candidates.values())) if candidates else _tensors(found)
    if not state:
        raise SpecError.at(POINTER, f"'{shown}' holds no tensors; its keys are {', '.join(map(str, list(found)[:8])) or 'none'}")
    return state


def _tensors(found: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}
