"""Read files of weights: names, shapes and dtypes first, tensors when they are asked for.

Safetensors are read by their header; pickles by `torch.load(weights_only=True)` alone. There is no way round it: a file that
holds more than tensors is refused with the names of what it holds.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from core.errors import SpecError, did_you_mean
from core.events import TransferStep
from core.hashes import sha256_of
from core.places import READ

POINTER = "/pretrained/source"
CONTAINER = "/pretrained/container"
_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights")
_AVERAGES = {"ema", "swa", "avg", "average", "averaged", "teacher"}
"""Words that say that weights are an average of others; a teacher mostly is that of its student."""
_DEPTH = 3
_LFS = b"version https://git-lfs.github.com/spec/"
"""How a pointer file of Git LFS begins (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""


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
    steps: tuple[TransferStep, ...] = ()
    """What was opened to get at the state dict."""
    path: Path | None = None
    """The file, where it is one that is read here."""
    model: str | None = None
    """What it is the weights of, where that is known, as a spec names it."""
    versions: Mapping[str, Mapping[str, Any]] | None = None
    """The state dict's `_metadata`: by module, the version that its tensors were saved by. Safetensors have none."""


def is_average(name: str) -> bool:
    """Whether a word of the name says that what it names is an average: `params_ema`, `swaModel`, but not `schema`."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return any(word.lower() in _AVERAGES for word in words)


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
    return Source(source, "torch", _entries(state), lambda: state, sha256, steps=steps, versions=versions, path=path)


def check_container(file: str, container: str | None) -> None:
    """Only a pickle has containers, and a file's name says whether it is one. Raises SpecError at /pretrained/container."""
    if container is not None and file.endswith(".safetensors"):
        raise SpecError.at(CONTAINER, "a safetensors file has no containers; 'select' takes the names below one")


def _refuse_pointer(path: Path, shown: str) -> None:
    """A repository that was cloned without Git LFS has a text of three lines where the file should be. Raises SpecError."""
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise SpecError.at(
                POINTER,
                f"'{shown}' is a Git LFS pointer, not the weights; run `git lfs pull` where it comes from, and copy it again",
            )


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
    return Source(source, "safetensors", _entries(state), lambda: state, sha256, classes, path=path)


def _entries(state: Mapping[str, Tensor]) -> dict[str, Entry]:
    return {key: Entry(tuple(value.shape), value.dtype) for key, value in state.items()}


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


def _state_in(path: Path, shown: str, container: str | None) -> tuple[str, Mapping[str, Tensor]]:
    """The state dict in a pickle, as `_opened` has it, of tensors that can be copied from.

    Others are found only while they are copied, when the model is half changed.
    """
    name, state = _opened(_load(path, shown), shown, container)
    odd = [f"'{key}' ({'no data' if one.is_meta else 'sparse'})" for key, one in state.items() if _is_odd(one)]
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise SpecError.at(
            POINTER, f"'{shown}' holds what is no plain tensor: {odd[0]}{more}; save it dense, from a model that is not on 'meta'"
        )
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


def _opened(found: object, shown: str, container: str | None) -> tuple[str, Mapping[str, Tensor]]:
    """The state dict of a loaded pickle, and where in it it was: nowhere (""), or the name of the container."""
    if not isinstance(found, Mapping):
        raise SpecError.at(POINTER, f"'{shown}' holds a {type(found).__name__}, not a state dict")
    if container is not None:
        return container, _chosen(found, shown, container)
    state = _tensors(found)
    candidates = dict(_named(found, ""))
    if not state and all(map(is_average, candidates)):
        candidates = dict(_anywhere(found, ""))
    names = ", ".join(candidates)
    if len(candidates) > 1:
        raise SpecError.at(
            POINTER,
            f"'{shown}' holds more than one state dict ({names}); say which by 'container', as \"{next(iter(candidates))}\"",
        )
    if any(map(is_average, candidates)):
        raise SpecError.at(
            POINTER,
            f"'{shown}' holds weights alone that by their name are an average ({names}), which are taken only if asked for: "
            f'"container": "{names}"',
        )
    if candidates:
        return next(iter(candidates.items()))
    if not state:
        raise SpecError.at(POINTER, f"'{shown}' holds no tensors; its keys are {', '.join(map(str, list(found)[:8])) or 'none'}")
    return "", state


def _chosen(found: Mapping[Any, Any], shown: str, container: str) -> Mapping[str, Tensor]:
    here: object = found
    for part in container.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    state = _tensors(here) if isinstance(here, Mapping) else None
    if not state:
        known = dict(_anywhere(found, ""))
        hint = did_you_mean(container, known) or " It has no containers."
        raise SpecError.at(CONTAINER, f"'{shown}' holds no state dict '{container}'.{hint}")
    return state


def _named(found: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """The state dicts in containers of the usual names, or of averages, one within another too: `model.state_dict`."""
    averages = [key for key in found if isinstance(key, str) and key not in _CONTAINERS and is_average(key)]
    for key in (*_CONTAINERS, *averages):
        inside = found.get(key)
        if isinstance(inside, Mapping):
            state = _tensors(inside)
            yield from [(path + key, state)] if state else _named(inside, f"{path}{key}.")


def _anywhere(found: Mapping[Any, Any], path: str, depth: int = _DEPTH) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Whatever could be a state dict: text for keys and tensors for values. An optimizer's state goes by numbers."""
    for key, inside in found.items():
        if depth and isinstance(key, str) and isinstance(inside, Mapping):
            state = _tensors(inside)
            yield from [(path + key, state)] if state else _anywhere(inside, f"{path}{key}.", depth - 1)


def _tensors(found: Mapping[Any, Any]) -> Mapping[str, Tensor]:
    """`found` itself where it holds nothing else, for it may carry the versions of its modules."""
    if found and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()):
        return found
    return _Partial(found)


class _Partial(dict[str, Tensor]):
    """The tensors of a mapping that holds other things too, with the versions that it carries."""

    def __init__(self, found: Mapping[Any, Any]) -> None:
        super().__init__({key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)})
        self._metadata = getattr(found, "_metadata", None)
