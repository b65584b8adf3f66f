"""Files of weights, mapped into memory: names, shapes and dtypes are known at once, numbers are read when they are used.

Pickles are read by `torch.load(weights_only=True)` alone. There is no way round it: a file that holds more than tensors is
refused with the names of what it holds.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from core.errors import SpecError, listed
from core.events import TransferStep
from core.hashes import sha256_of
from core.places import READ
from core.transfer.containers import check_container, open_container
from core.transfer.entries import POINTER, Source, entries_of

_LFS = b"version https://git-lfs.github.com/spec/"
"""How a pointer file of Git LFS begins (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""


def read_file(source: str, path: Path, shown: str, shapes_only: bool, container: str | None = None) -> Source:
    """The weights in a file that people know as `shown`, out of `container` where a pickle has several state dicts.

    Raises SpecError at /pretrained/source, or at /pretrained/container.
    """
    if path.suffix not in READ or not path.is_file():
        raise SpecError.at(POINTER, f"'{shown}' is no file of weights; those end in {', '.join(READ)}")
    check_container(path.name, container)
    sha256 = None if shapes_only else sha256_of(path)
    if path.suffix == ".safetensors":
        return read_safetensors(source, path, shown, sha256)
    name, state = _state_in(path, shown, container)
    steps = (TransferStep(kind="container", detail=name, keys=len(state)),) if name else ()
    versions = getattr(state, "_metadata", None)
    return Source(source, "torch", entries_of(state), lambda: state, sha256, steps=steps, versions=versions, path=path)


def read_safetensors(source: str, path: Path, shown: str, sha256: str | None, classes: tuple[str, ...] | None = None) -> Source:
    """The weights in a safetensors file, mapped: its numbers are read when they are used.

    Raises SpecError at /pretrained/source.
    """
    _refuse_pointer(path, shown)
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no dict)
    except (OSError, SafetensorError) as error:
        raise SpecError.at(POINTER, f"'{shown}' cannot be read as safetensors: {error}") from None
    return Source(source, "safetensors", entries_of(state), lambda: state, sha256, classes, path=path)


def load_pickle(path: Path, shown: str, container: str | None = None) -> Mapping[str, Tensor]:
    """The one state dict in a .pt or .pth file, or that in `container`, on the CPU: mapped, where the format allows it.

    Raises SpecError at /pretrained/source, or at /pretrained/container.
    """
    return _state_in(path, shown, container)[1]


def look_into(path: Path, shown: str, container: str | None = None) -> None:
    """Refuse a pickle that is not one state dict, where its format lets that be told without reading it all.

    Raises SpecError at /pretrained/source, or at /pretrained/container.
    """
    if path.suffix != ".safetensors" and zipfile.is_zipfile(path):
        load_pickle(path, shown, container)


def load_tensors(path: Path, shown: str, container: str | None = None) -> Mapping[str, Tensor]:
    """The tensors in a safetensors file, or a pickle's as `load_pickle` has them. Raises SpecError."""
    if path.suffix == ".safetensors":
        return read_safetensors(shown, path, shown, None).tensors()
    return load_pickle(path, shown, container)


def _refuse_pointer(path: Path, shown: str) -> None:
    """A repository that was cloned without Git LFS has a text of three lines where the file should be. Raises SpecError."""
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise SpecError.at(
                POINTER,
                f"'{shown}' is a Git LFS pointer, not the weights; run `git lfs pull` where it comes from, and copy it again",
            )


def _state_in(path: Path, shown: str, container: str | None) -> tuple[str, Mapping[str, Tensor]]:
    """The state dict in a pickle, as `open_container` has it, of tensors that can be copied from.

    Others are found only while they are copied, when the model is half changed.
    """
    name, state = open_container(_load(path, shown), shown, container)
    odd = [f"'{key}' ({'no data' if one.is_meta else 'sparse'})" for key, one in state.items() if _is_odd(one)]
    if odd:
        what = f"'{shown}' holds what is no plain tensor: {listed(odd, 1)}"
        raise SpecError.at(POINTER, f"{what}; save it dense, from a model that is not on 'meta'")
    return name, state


def _is_odd(tensor: Tensor) -> bool:
    """Whether it has a shape and a type, and yet no numbers side by side."""
    return tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided


def _load(path: Path, shown: str) -> object:
    _refuse_pointer(path, shown)
    zipped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise SpecError.at(POINTER, f"'{shown}' {_why_refused(path if zipped else None, str(error))}") from None
    except Exception as error:  # a damaged file raises whatever the unpickler stumbles over
        raise SpecError.at(POINTER, f"'{shown}' cannot be read: {type(error).__name__}: {error}") from None


def _why_refused(path: Path | None, message: str) -> str:
    """What a pickle holds that is not allowed: everything, where the format lets it be listed without loading."""
    named = re.findall(r"GLOBAL ([\w.]+)", message)[:1]
    if not named:
        said = re.search(r"WeightsUnpickler error: (.*)", message)
        return "is no file of tensors that torch.save wrote" + (f" ({said[1].strip()})" if said and said[1].strip() else "")
    every = sorted({*named, *(get_unsafe_globals_in_checkpoint(path) if path else ())})
    return (
        f"holds more than tensors ({', '.join(every)}), and to load that would run code from the file; "
        "save the state_dict() alone, best as safetensors"
    )
