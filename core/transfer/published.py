"""Weights that a library publishes for its own models: which file they are, what is in it, and how images reached it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torchvision import models as vision
from torchvision.models import WeightsEnum

from core import timm_models
from core.catalog import model_names
from core.data.preprocessing import Preprocessing
from core.errors import SpecError, TransferError, did_you_mean
from core.places import PinnedWeights
from core.transfer.entries import POINTER
from core.transfer.statefiles import load_pickle, load_tensors

SCHEMES = ("torchvision", "timm")


@dataclass(frozen=True)
class Published:
    """Official weights. The library itself gives tensors their present names: older files call some otherwise."""

    library: Literal["torchvision", "timm"]
    pinned: PinnedWeights
    """Where the file is, as far as the library says."""
    preprocessing: Preprocessing
    build: Callable[[], nn.Module]
    """The model as these weights were trained, on the current default device."""
    load: Callable[[Path, str | None], Mapping[str, Tensor]]
    """Its state dict with the weights of the file, out of that container of it, on the CPU. Raises TransferError, SpecError."""
    classes: tuple[str, ...] | None = None
    """Names of the classes that its head tells apart, where the library says."""


def published(source: str) -> Published:
    """What `torchvision:NAME/WEIGHTS` or `timm:NAME` means. Raises SpecError with the names that there are."""
    kind, _, name = source.partition(":")
    return _torchvision(name) if kind == "torchvision" else _timm(name)


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


def _torchvision(name: str) -> Published:
    model_name, weights = torchvision_weights(name)
    preset = weights.transforms()
    size = preset.crop_size
    side = size[-1] if isinstance(size, list | tuple) else size
    build = partial(_build_torchvision, model_name, weights)
    return Published(
        "torchvision",
        _at(weights.url),
        Preprocessing.of(side, preset.mean, preset.std),
        build,
        partial(_load_torchvision, build, model_name),
        tuple(weights.meta["categories"]),
    )


def _build_torchvision(name: str, weights: WeightsEnum) -> nn.Module:
    """For a few models what the weights were trained as differs from the builder's defaults."""
    keywords: dict[str, Any] = {"num_classes": len(weights.meta["categories"])}
    if name.startswith("vit"):
        keywords["image_size"] = weights.meta["min_size"][0]
    elif name in {"googlenet", "inception_v3"}:
        keywords |= {"aux_logits": True, "init_weights": False}
    model: nn.Module = vision.get_model_builder(name)(**keywords)
    return model


def _load_torchvision(build: Callable[[], nn.Module], name: str, path: Path, container: str | None) -> Mapping[str, Tensor]:
    official = build()
    state = _undotted(load_pickle(path, path.name, container))
    try:
        official.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise TransferError(f"{path.name} does not hold the weights of {name}: {error}") from error
    return official.state_dict()


def _undotted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DenseNet's files say `norm.1` where the model says `norm1` (torchvision/models/densenet.py, `_load_state_dict`)."""
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key): value for key, value in state.items()}


def _timm(name: str) -> Published:
    try:
        timm = timm_models.library()
    except ModuleNotFoundError:
        raise SpecError.at(
            POINTER, "timm is not installed here; let the operator install graft with its extra: graft[timm]"
        ) from None
    known = timm.list_models(pretrained=True)
    if name not in known and not timm.models.is_model_pretrained(name):
        raise SpecError.at(POINTER, f"timm publishes no weights '{name}'.{did_you_mean(name, known)}")
    config = timm.models.get_pretrained_cfg(name)
    if config.hf_hub_id:
        file = config.hf_hub_filename or "model.safetensors"
        pinned = PinnedWeights(file=file, repository=config.hf_hub_id, local_name=f"{config.hf_hub_id}/{file}")
    elif config.url and not config.custom_load:
        pinned = _at(config.url)
    else:
        raise SpecError.at(POINTER, f"timm has no file of '{name}' that is read here; fetch it, and name it as file:PATH")
    return Published(
        "timm",
        pinned,
        Preprocessing.of(config.input_size[-1], config.mean, config.std),
        partial(timm.create_model, name, pretrained=False),
        partial(_load_timm, timm, name),
    )


def _load_timm(timm: Any, name: str, path: Path, container: str | None) -> Mapping[str, Tensor]:
    """Read here, as every other file, and handed to timm for its conversion of older names alone.

    timm's own reader would take an average that lies beside the weights, and lets pickles hold more than tensors.
    """
    tensors = load_tensors(path, path.name, container)
    try:
        overlay = {"state_dict": timm.models.clean_state_dict(tensors), "custom_load": False}
        model: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # a damaged or foreign file raises whatever the reader stumbles over
        raise TransferError(f"{path.name} does not hold the weights of timm's {name}: {error}") from error
    return model.state_dict()


def _at(url: str) -> PinnedWeights:
    """A file by its URL, in whose name stands how its SHA-256 begins, as torch.hub has it."""
    name = url.rpartition("/")[2]
    said = re.search(r"-([0-9a-f]{8,64})\.", name)
    return PinnedWeights(file=name, sha256_begins=said[1] if said else "", url=url, local_name=name)
