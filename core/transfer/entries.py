"""What is known of tensors without their numbers: a model's entries, and what a source holds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from core.events import TransferStep

POINTER = "/pretrained/source"
COUNTER = "num_batches_tracked"
"""The one buffer of a norm that says nothing of what it learned."""


class Entry(NamedTuple):
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
    steps: tuple[TransferStep, ...] = ()
    """What was opened to get at the state dict."""
    path: Path | None = None
    """The file, where it is one that is read here."""
    model: str | None = None
    """What it is the weights of, where that is known, as a spec names it."""
    versions: Mapping[str, Mapping[str, Any]] | None = None
    """The state dict's `_metadata`: by module, the version that its tensors were saved by. Safetensors have none."""


def entries_of(state: Mapping[str, object]) -> dict[str, Entry]:
    """The tensors of a state dict (a module's extra state need not be one, and is never transferred)."""
    return {key: Entry(tuple(value.shape), value.dtype) for key, value in state.items() if isinstance(value, Tensor)}


def parameters_of(state: Mapping[str, object]) -> frozenset[str]:
    """The names of the parameters in a state dict that `keep_vars`, each name of a tied one."""
    return frozenset(key for key, value in state.items() if isinstance(value, nn.Parameter))


def tied(state: Mapping[str, object]) -> list[list[str]]:
    """The names of each tensor that has more than one, of a state dict that `keep_vars`: else each name has its own object."""
    names: defaultdict[int, list[str]] = defaultdict(list)
    for key, value in state.items():
        if isinstance(value, Tensor):
            names[id(value)].append(key)
    return [keys for keys in names.values() if len(keys) > 1]


def elements(shape: Iterable[int]) -> int:
    """How many numbers a tensor of this shape holds."""
    return math.prod(shape)


def misfit(here: Entry, there: Entry) -> str | None:
    """Why a tensor cannot be copied into an entry as it is."""
    if here.shape != there.shape:
        return f"shape {list(there.shape)} in the source, {list(here.shape)} here"
    return None if alike(here, there) else f"{dtype_name(there.dtype)} in the source, {dtype_name(here.dtype)} here"


def alike(here: Entry, there: Entry) -> bool:
    """Whether both hold the same kind of number: a cast from integers to floats or back is no transfer."""
    if here.dtype is None or there.dtype is None:
        return False
    return (here.dtype.is_floating_point, here.dtype.is_complex) == (there.dtype.is_floating_point, there.dtype.is_complex)


def dtype_name(dtype: torch.dtype | None) -> str:
    """`float32`."""
    return str(dtype).removeprefix("torch.") if dtype is not None else "an unknown type"
