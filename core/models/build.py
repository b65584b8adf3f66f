"""Build a model for the dataset's classes, find its head, and graft pretrained weights on to it."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, get_type_hints

from torch import nn
from torchvision import models as vision

from core import timm_models
from core.catalog import model_names
from core.errors import SpecError, did_you_mean, place_of
from core.events import TransferData
from core.hashes import sha256_of
from core.keywords import check_keywords
from core.places import Places
from core.shapes import shapes_of
from core.spec import JobSpec, ModelSpec, Task
from core.transfer import weights
from core.transfer.heads import Head

POINTER = "/model"

# What torchvision would do by default returns a tuple while training (aux_logits), or warns (init_weights).
_DEFAULTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
_BUILDER_ONLY = ("width_mult", "reduced_tail", "dilated")
"""What MobileNetV3's builder takes beside its class's keywords."""
_OURS = {
    "num_classes": "the number of classes comes from the dataset; leave it out",
    "weights": "pretrained weights are named by /pretrained; leave it out",
    "progress": "nothing is shown here; leave it out",
}


def get_model(
    spec: JobSpec, classes: int, places: Places, names: tuple[str, ...] = (), *, task: Task = "multiclass"
) -> tuple[nn.Module, TransferData]:
    """The model of `spec` for `classes` classes with the pretrained weights loaded, and the report of what was.

    The transfer is planned on shapes before a tensor is touched; a refused one leaves nothing half-loaded. `names` are the
    dataset's classes: a job's head is kept where it tells the same ones apart. Raises SpecError, TransferError.
    """
    model = build_model(spec.model, classes, places)
    head = find_head(model, spec.model, classes, places)
    if spec.pretrained is None:
        return model, weights.from_scratch(model, head)
    source = weights.read(spec.pretrained.source, places, container=spec.pretrained.container)
    plan = weights.plan_transfer(model, source, spec.pretrained, head, names, task=task)
    weights.apply_transfer(model, source, plan)
    return model, plan.report


def build_model(spec: ModelSpec, classes: int, places: Places) -> nn.Module:
    """The model, randomly initialised, on the current default device.

    Raises SpecError below /model, with what its constructor says where that fails.
    """
    return _built(spec, *_constructor(spec, classes, places))


def constructor_keywords(spec: ModelSpec, classes: int) -> dict[str, Any]:
    """All that the constructor of a model is given which was built here before. Raises SpecError as `build_model` does."""
    module = spec.name.split(":")[1]
    return _constructor(spec, classes, Places(plugins=(module,)))[1]


def module_hash(spec: ModelSpec) -> dict[str, str]:
    """The SHA-256 of the file of a person's own module, by the file's name, as it was when it was imported; else nothing."""
    kind, _, name = spec.name.partition(":")
    return dict(_hash_of(name.partition(":")[0])) if kind == "python" else {}


@cache
def _hash_of(module_name: str) -> Mapping[str, str]:
    """Asked for right after the import: the file may be edited while the model trains."""
    path = Path(getattr(sys.modules.get(module_name), "__file__", None) or "")
    return {path.name: sha256_of(path)} if path.is_file() else {}


def _constructor(spec: ModelSpec, classes: int, places: Places) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """What makes the model, and the keywords it is given. Raises SpecError below /model."""
    kind, _, name = spec.name.partition(":")
    if kind == "torchvision" and name:
        return _torchvision(name, spec, classes)
    if kind == "timm" and name:
        return _timm(name, spec, classes)
    if kind == "python" and name:
        return _plugin(name, spec, classes, places)
    libraries = {"torchvision": model_names, "timm": timm_models.names}
    known = next((library for library, names in libraries.items() if spec.name in names()), None)
    hint = f" Did you mean '{known}:{spec.name}'?" if known else ""
    raise SpecError.at(
        f"{POINTER}/name", f"'{spec.name}' is no model; write torchvision:NAME, timm:NAME or python:MODULE:CLASS.{hint}"
    )


def find_head(model: nn.Module, spec: ModelSpec, classes: int, places: Places) -> Head:
    """Build `model`, which is that of `spec` for `classes` classes, once more for another number, and see which shapes differ.

    No table per family is needed, auxiliary heads are found too, and shapes cost no memory. A model that does not take
    `num_classes` has no head that could be told from the rest.
    """
    one = model.state_dict()
    other = shapes_of(partial(build_model, spec, classes + 1, places)).state_dict()
    differ = [key for key, value in one.items() if not _same_shape(value, other.get(key))]
    return Head(frozenset(differ), tuple(dict.fromkeys(key.rpartition(".")[0] for key in differ)))


def takes(spec: ModelSpec, keyword: str) -> bool:
    """Whether the constructor of this model of a library has that keyword (Inception's `transform_input`)."""
    kind, _, name = spec.name.partition(":")
    if kind == "timm":
        return timm_models.has(name) and keyword in timm_models.keywords_of(name)
    return kind == "torchvision" and name in model_names() and keyword in inspect.signature(_class_of(name)).parameters


def size_keyword(spec: ModelSpec) -> str | None:
    """What a model that is built for one image size (a ViT) calls it in its constructor; None for one that takes any."""
    keyword = "img_size" if spec.name.startswith("timm:") else "image_size"
    return keyword if takes(spec, keyword) else None


def _same_shape(one: Any, other: Any) -> bool:
    return getattr(one, "shape", None) == getattr(other, "shape", None)


def _class_of(name: str) -> type[nn.Module]:
    """The class behind a builder of torchvision, whose `**kwargs` go there."""
    found: type[nn.Module] = get_type_hints(vision.get_model_builder(name))["return"]
    return found


def _torchvision(name: str, spec: ModelSpec, classes: int) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    if name not in model_names():
        if name in vision.list_models():
            raise SpecError.at(f"{POINTER}/name", f"torchvision's '{name}' does not classify images; name one that does")
        raise SpecError.at(
            f"{POINTER}/name", f"torchvision has no classification model '{name}'.{did_you_mean(name, model_names())}"
        )
    _check(_class_of(name), spec, more=_BUILDER_ONLY if name.startswith("mobilenet_v3") else ())
    return vision.get_model_builder(name), {**_DEFAULTS.get(name, {}), **spec.keywords, "num_classes": classes}


def _timm(name: str, spec: ModelSpec, classes: int) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    timm_models.check_name(name)
    # Its builders take keywords beside the class's: whether one is unknown is known once the model is built.
    _check(timm_models.target_of(name), spec, {**_OURS, **timm_models.OURS}, more=tuple(spec.keywords))
    return partial(timm_models.build, name), {**spec.keywords, "num_classes": classes}


def _plugin(name: str, spec: ModelSpec, classes: int, places: Places) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    module_name, _, class_name = name.partition(":")
    pointer = f"{POINTER}/name"
    if module_name not in places.plugins:
        listed = did_you_mean(module_name, places.plugins) or " The list is empty."
        raise SpecError.at(pointer, f"'{module_name}' is not on the operator's list of plug-ins (GRAFT_PLUGINS).{listed}")
    if places.plugins_dir is not None and sys.path[:1] != [str(places.plugins_dir)]:
        sys.path.insert(0, str(places.plugins_dir))
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise SpecError.at(pointer, f"importing '{module_name}' raised {_where(error)}") from error
    _hash_of(module_name)
    found = getattr(module, class_name, None)
    if not callable(found):
        classes_there = [key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, nn.Module)]
        raise SpecError.at(pointer, f"'{module_name}' has no class '{class_name}'.{did_you_mean(class_name, classes_there)}")
    _check(found, spec, open_ended=True)
    counts = {"num_classes": classes} if "num_classes" in inspect.signature(found).parameters else {}
    return found, {**spec.keywords, **counts}


def _check(target: Callable[..., Any], spec: ModelSpec, refused: Mapping[str, str] = _OURS, **known: Any) -> None:
    faults = check_keywords(target, spec.keywords, POINTER, refused=refused, **known)
    if faults:
        raise SpecError(*faults)


def _built(spec: ModelSpec, builder: Callable[..., nn.Module], keywords: dict[str, Any]) -> nn.Module:
    try:
        model = builder(**keywords)
    except SpecError:
        raise
    except (Exception, SystemExit) as error:
        raise SpecError.at(_blame(spec, error), f"building '{spec.name}' raised {_where(error)}") from error
    if not isinstance(model, nn.Module):
        raise SpecError.at(f"{POINTER}/name", f"'{spec.name}' made a {type(model).__name__}, not a torch.nn.Module")
    if lazy := next(_lazy(model), None):
        raise SpecError.at(f"{POINTER}/name", f"'{lazy}' is lazy: its shape is not known before training; give its sizes")
    return model


def _lazy(model: nn.Module) -> Iterator[str]:
    return (name for name, parameter in model.named_parameters() if nn.parameter.is_lazy(parameter))


def _blame(spec: ModelSpec, error: BaseException) -> str:
    """The keyword that the constructor's message names, or the only one there is, else the model."""
    named = re.search(r"argument '(\w+)'", str(error))
    if named and named[1] in spec.keywords:
        return f"{POINTER}/{named[1]}"
    return f"{POINTER}/{next(iter(spec.keywords))}" if len(spec.keywords) == 1 else POINTER


def _where(error: BaseException) -> str:
    """`ValueError: … (nets.py, line 12)`: the exception and the innermost line of the file that raised it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({error.filename.rsplit('/', 1)[-1]}, line {error.lineno})"
    return f"{type(error).__name__}: {error}{place_of(error)}"
