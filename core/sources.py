"""Read pretrained weights: names, shapes and dtypes first, tensors when they are asked for.

Safetensors are read by their header; pickles by `torch.load(weights_only=True)` alone. There is no way round it: a file that
holds more than tensors is refused with the names of what it holds.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchvision import models as vision
from torchvision.models import WeightsEnum

from core.batches import Preprocessing
from core.catalog import model_names
from core.errors import SpecError, TransferError, did_you_mean
from core.places import PinnedWeights, Places
from core.shapes import shapes_of

__all__ = ["Entry", "Source", "preprocessing_of", "read"]

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
    format: Literal["safetensors", "torch", "torchvision"]
    entries: Mapping[str, Entry]
    tensors: Callable[[], Mapping[str, Tensor]]
    sha256: str | None = None
    classes: tuple[str, ...] | None = None
    """Names of the classes that its head tells apart, where that is known."""


def read(source: str, places: Places, *, shapes_only: bool = False) -> Source:
    """The weights that `source` names, found and checked.

    With `shapes_only`, as a plan needs it, files are neither hashed nor downloaded, and a torchvision file need not be there
    where it may be downloaded later. Raises SpecError at /pretrained/source; TransferError where a file's hash is wrong.
    """
    kind, _, rest = source.partition(":")
    if kind == "torchvision" and rest:
        return _read_torchvision(source, rest, places, shapes_only)
    if kind == "file" and rest:
        return _read_file(source, places.input(rest, POINTER), rest, shapes_only)
    if kind == "job" and rest:
        return _read_job(source, _pinned(source, places), shapes_only)
    raise SpecError.at(POINTER, f"'{source}' is no source of weights; write torchvision:NAME/WEIGHTS, file:PATH or job:ID")


def preprocessing_of(source: str, places: Places) -> Preprocessing | None:
    """The image size and normalisation that the weights were trained with, or None where the source does not say."""
    kind, _, rest = source.partition(":")
    if kind == "torchvision":
        preset = torchvision_weights(rest)[1].transforms()
        size = preset.crop_size
        side = size[-1] if isinstance(size, list | tuple) else size
        return Preprocessing(int(side), _triple(preset.mean), _triple(preset.std))
    if kind == "job":
        known = _model_card(_pinned(source, places)).get("preprocessing")
        return Preprocessing(int(known["size"]), _triple(known["mean"]), _triple(known["std"])) if known else None
    return None


def torchvision_weights(name: str) -> tuple[str, WeightsEnum]:
    """The model and the weights that `NAME/WEIGHTS` means. Raises SpecError with the names that there are."""
    model, _, weights = name.partition("/")
    known = model_names()
    if model not in known:
        raise SpecError.at(POINTER, f"torchvision has no classification model '{model}'.{did_you_mean(model, known)}")
    enum = vision.get_model_weights(model)
    if weights not in enum.__members__:
        hint = did_you_mean(weights, enum.__members__) if weights else f" Known: {', '.join(enum.__members__)}."
        raise SpecError.at(POINTER, f"'{name}' names no weights of {model}; write torchvision:{model}/WEIGHTS.{hint}")
    return model, enum[weights]


def _read_torchvision(source: str, name: str, places: Places, shapes_only: bool) -> Source:
    """As the official model names them: torchvision itself renames what older files call otherwise."""
    model_name, weights = torchvision_weights(name)
    path = _find_download(weights.url, places, shapes_only)
    official = shapes_of(partial(_official, model_name, weights))
    entries = {key: Entry(tuple(value.shape), value.dtype) for key, value in official.state_dict().items()}
    if path is None or shapes_only:
        return Source(source, "torchvision", entries, dict)
    sha = _sha256(path)
    expected = _hash_prefix(path.name)
    if not sha.startswith(expected):
        raise TransferError(
            f"{path.name} has the SHA-256 {sha[:16]}…, its name says {expected}…: the file is damaged",
            "Delete the file, and fetch it again.",
        )

    def tensors() -> Mapping[str, Tensor]:
        try:
            official.load_state_dict(_undotted(_load_pickle(path, path.name)), strict=True, assign=True)
        except RuntimeError as error:
            raise TransferError(f"{path.name} does not hold the weights of {model_name}: {error}") from error
        return official.state_dict()

    return Source(source, "torchvision", entries, tensors, sha)


def _official(name: str, weights: WeightsEnum) -> nn.Module:
    """The model as its weights were trained, which for a few differs from the builder's defaults."""
    keywords: dict[str, Any] = {"num_classes": len(weights.meta["categories"])}
    if name.startswith("vit"):
        keywords["image_size"] = weights.meta["min_size"][0]
    elif name in {"googlenet", "inception_v3"}:
        keywords |= {"aux_logits": True, "init_weights": False}
    model: nn.Module = vision.get_model_builder(name)(**keywords)
    return model


def _undotted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DenseNet's files say `norm.1` where the model says `norm1` (torchvision/models/densenet.py, `_load_state_dict`)."""
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key): value for key, value in state.items()}


def _find_download(url: str, places: Places, shapes_only: bool) -> Path | None:
    name = url.rsplit("/", 1)[-1]
    cache = places.cache / "torchvision"
    folders = [places.inputs, places.inputs / "weights", cache, Path(torch.hub.get_dir()) / "checkpoints"]
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if found is not None:
        return found
    if not places.download:
        raise SpecError.at(
            POINTER,
            f"the file {name} is not here, and downloads are off; put it into the inputs directory (or its folder weights/), "
            "or let the operator set GRAFT_DOWNLOAD=true",
        )
    if shapes_only:
        return None
    cache.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(cache / name), hash_prefix=_hash_prefix(name), progress=False)
    except (OSError, RuntimeError) as error:
        raise TransferError(f"{name} could not be downloaded: {error}", "Put the file into the inputs directory.") from error
    return cache / name


def _hash_prefix(name: str) -> str:
    found = re.search(r"-([0-9a-f]{8,})\.", name)
    return found[1] if found else ""


def _pinned(source: str, places: Places) -> PinnedWeights:
    if source not in places.pinned:
        raise SpecError.at(POINTER, f"'{source}' has no weights here; name a job that has written a checkpoint")
    return places.pinned[source]


def _read_job(source: str, pinned: PinnedWeights, shapes_only: bool) -> Source:
    path = pinned.path / "model.safetensors" if pinned.path.is_dir() else pinned.path
    if not path.is_file():
        raise SpecError.at(POINTER, f"the weights of '{source}' are gone; name another job, or train it again")
    if not shapes_only and _sha256(path) != pinned.sha256:
        raise TransferError(f"the weights of '{source}' have changed since this job was submitted")
    classes = _model_card(pinned).get("classes")
    return _read_safetensors(source, path, path.name, pinned.sha256, tuple(classes) if classes else None)


def _model_card(pinned: PinnedWeights) -> dict[str, Any]:
    folder = pinned.path if pinned.path.is_dir() else pinned.path.parent
    try:
        card: dict[str, Any] = json.loads((folder / "model.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return card


def _read_file(source: str, path: Path, shown: str, shapes_only: bool) -> Source:
    if path.suffix not in SUFFIXES or not path.is_file():
        raise SpecError.at(POINTER, f"'{shown}' is no file of weights; those end in {', '.join(SUFFIXES)}")
    sha256 = None if shapes_only else _sha256(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(source, path, shown, sha256)
    state = _load_pickle(path, shown)
    entries = {key: Entry(tuple(value.shape), value.dtype) for key, value in state.items()}
    return Source(source, "torch", entries, lambda: state, sha256)


def _read_safetensors(source: str, path: Path, shown: str, sha256: str | None, classes: tuple[str, ...] | None = None) -> Source:
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


def _load_pickle(path: Path, shown: str) -> Mapping[str, Tensor]:
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


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
