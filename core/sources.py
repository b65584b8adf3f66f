"""Where pretrained weights come from: each kind of source, found, checked and read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models as vision
from torchvision.models import WeightsEnum

from core.batches import Preprocessing
from core.catalog import model_names
from core.errors import SpecError, TransferError, did_you_mean
from core.places import PinnedWeights, Places
from core.shapes import shapes_of
from core.statefiles import CONTAINER, POINTER, Entry, Source, load_pickle, read_file, read_safetensors
from core.tensorfile import sha256_of

__all__ = ["Entry", "Source", "preprocessing_of", "read"]


def read(source: str, places: Places, *, container: str | None = None, shapes_only: bool = False) -> Source:
    """The weights that `source` names, found and checked; `container` says where in a pickle they are.

    With `shapes_only`, as a plan needs it, files are neither hashed nor downloaded, and a torchvision file need not be there
    where it may be downloaded later. Raises SpecError at /pretrained/source; TransferError where a file's hash is wrong.
    """
    kind, _, rest = source.partition(":")
    if kind == "file" and rest:
        return read_file(source, places.input(rest, POINTER), rest, shapes_only, container)
    if container is not None:
        raise SpecError.at(CONTAINER, f"it has no effect: '{source}' has no containers; leave it out")
    if kind == "torchvision" and rest:
        return _read_torchvision(source, rest, places, shapes_only)
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
        return Source(source, "torchvision", entries, dict, classes=tuple(weights.meta["categories"]))
    sha = sha256_of(path)
    expected = _hash_prefix(path.name)
    if not sha.startswith(expected):
        raise TransferError(
            f"{path.name} has the SHA-256 {sha[:16]}…, its name says {expected}…: the file is damaged",
            "Delete the file, and fetch it again.",
        )

    def tensors() -> Mapping[str, Tensor]:
        try:
            official.load_state_dict(_undotted(load_pickle(path, path.name)), strict=True, assign=True)
        except RuntimeError as error:
            raise TransferError(f"{path.name} does not hold the weights of {model_name}: {error}") from error
        return official.state_dict()

    return Source(source, "torchvision", entries, tensors, sha, classes=tuple(weights.meta["categories"]))


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
    if not shapes_only and sha256_of(path) != pinned.sha256:
        raise TransferError(f"the weights of '{source}' have changed since this job was submitted")
    classes = _model_card(pinned).get("classes")
    return read_safetensors(source, path, path.name, pinned.sha256, tuple(classes) if classes else None)


def _model_card(pinned: PinnedWeights) -> dict[str, Any]:
    folder = pinned.path if pinned.path.is_dir() else pinned.path.parent
    try:
        card: dict[str, Any] = json.loads((folder / "model.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return card


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
