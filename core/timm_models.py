"""timm's models by name, and what their constructors take. timm is an extra: only `library` imports it, when it is asked for.

Names are those of its registry, with a tag of their weights or without (`resnet50`, `resnet50.a1_in1k`); where `create_model`
would fetch from a hub or read a folder (`hf-hub:…`, `local-dir:…`), it is not reached.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from functools import cache
from typing import Any, get_type_hints

from torch import nn

from core.errors import SpecError, did_you_mean

POINTER = "/model/name"
OURS = {
    **dict.fromkeys(
        ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
        "pretrained weights are named by /pretrained; leave it out",
    ),
    **dict.fromkeys(("features_only", "out_indices"), "a model here gives a score per class; leave it out"),
    **dict.fromkeys(("device", "dtype"), "the model goes where the job trains; leave it out"),
    **dict.fromkeys(("scriptable", "exportable", "no_jit"), "the model is neither scripted nor exported; leave it out"),
    "in_chans": "images come as RGB; leave it out",
}
"""Keywords of `create_model` that are not a job's to set, with the reason."""


def names() -> list[str]:
    """The architectures of timm that classify, naturally sorted; none where it is not installed."""
    try:
        found: list[str] = library().list_models()
    except ModuleNotFoundError:
        return []
    return [name for name in found if "num_classes" in keywords_of(name)]


def has(name: str) -> bool:
    """Whether timm has that architecture, whatever its tag."""
    try:
        return bool(library().is_model(name))
    except ModuleNotFoundError:
        return False


def check_name(name: str) -> None:
    """Raises SpecError at /model/name where timm is not installed, or has no such architecture, or no such tag of it."""
    try:
        timm = library()
    except ModuleNotFoundError as error:
        raise SpecError.at(
            POINTER, f"timm is not installed here ({error}); the operator adds it by: pip install 'graft[timm]'"
        ) from None
    architecture, _, tag = name.partition(".")
    if renamed := timm.models.get_deprecated_models().get(architecture):
        raise SpecError.at(POINTER, f"timm calls '{architecture}' '{renamed}' now; name that")
    known = timm.list_models()
    if architecture not in known:
        raise SpecError.at(POINTER, f"timm has no model '{name}'.{did_you_mean(architecture, known)}")
    if "num_classes" not in keywords_of(architecture):
        raise SpecError.at(POINTER, f"timm's '{architecture}' gives features, not a score per class; name a classifier")
    tags = [each.partition(".")[2] for each in timm.models.get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in tags:
        raise SpecError.at(POINTER, f"timm has no '{tag}' of {architecture}.{did_you_mean(tag, filter(None, tags))}")


def target_of(name: str) -> Callable[..., Any]:
    """The class behind an architecture, whose keywords a builder passes on; the builder itself where timm does not say."""
    builder: Callable[..., Any] = library().models.model_entrypoint(name)
    found = get_type_hints(builder).get("return")
    return found if inspect.isclass(found) and issubclass(found, nn.Module) else builder


@cache
def keywords_of(name: str) -> frozenset[str]:
    """The keywords of `target_of(name)`, with those of its base classes where it passes others on."""
    found: dict[str, Any] = {}
    target = target_of(name)
    for one in inspect.getmro(target) if inspect.isclass(target) else ():
        parameters = inspect.signature(one).parameters
        found |= parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return frozenset(found) - {"args", "kwargs"}
    return frozenset({*found, "num_classes"})  # it does not say


def build(name: str, **keywords: Any) -> nn.Module:
    """The model, randomly initialised. Raises SpecError at a keyword that nothing between `create_model` and the class takes."""
    try:
        model: nn.Module = library().create_model(name, pretrained=False, **keywords)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in keywords:
            raise
        hint = did_you_mean(unknown[1], sorted(keywords_of(name) - OURS.keys() - {"num_classes"}))
        raise SpecError.at(f"/model/{unknown[1]}", f"unknown keyword of timm's {name}.{hint}") from error
    return model


def library() -> Any:
    """The package. Raises ModuleNotFoundError where it is not installed."""
    return importlib.import_module("timm")
