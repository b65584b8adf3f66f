"""Names and what they mean: models, losses, optimizers, schedules, and checks of the keywords that their constructors take."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, get_type_hints

import torch
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torchvision import models as vision

from core import timm_models
from core.curves import FORMS
from core.datasets import dataset_sources
from core.errors import Fault, SpecError, did_you_mean, pointer_of
from core.spec import LossSpec

REFUSED_OPTIMIZERS = {
    "LBFGS": "evaluates the loss several times a step, which the loop does not do",
    "SparseAdam": "takes sparse gradients, which no model here has",
}
REFUSED_OPTIMIZER_KEYWORDS = {
    "params": "parameters come from the model; address them by groups",
    "capturable": "it is for CUDA graphs, which are not used here; leave it out",
    "differentiable": "nothing differentiates through the step; leave it out",
}
REFUSED_SCHEDULES = {
    "ChainedScheduler": "takes other schedulers; a job has one, after a warmup (warmup_steps)",
    "CyclicLR": "takes bounds that know nothing of the groups; use OneCycleLR or CosineAnnealingWarmRestarts",
    "LambdaLR": "takes a function, which JSON cannot carry",
    "MultiplicativeLR": "takes a function, which JSON cannot carry",
    "SequentialLR": "takes other schedulers; a job has one, after a warmup (warmup_steps)",
}
REFUSED_SCHEDULE_KEYWORDS = {
    "optimizer": "it is the job's; leave it out",
    "last_epoch": "a job knows how far it is; leave it out",
}
LENGTHS = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps", "PolynomialLR": "total_iters"}
"""Of a schedule that is as long as what the warmup leaves of the job, the keyword that says otherwise."""
_REFUSED_LOSS_KEYWORDS = {
    "size_average": "torch has deprecated it; leave it out",
    "reduce": "torch has deprecated it; leave it out",
    "device": "the loss goes where the model is; leave it out",
    "dtype": "the loss has the model's type; leave it out",
}
_FIT = "Losses that fit: CrossEntropyLoss, MultiMarginLoss, and NLLLoss where the model's outputs are log-probabilities."


def model_names() -> list[str]:
    """Models of torchvision for the classification of images (detection, segmentation, video and the like left out)."""
    names: list[str] = vision.list_models(module=vision)
    return names


def loss_names() -> list[str]:
    """The loss classes of torch.nn."""
    return sorted(name for name, value in vars(nn).items() if name.endswith("Loss") and inspect.isclass(value))


def optimizer_names() -> list[str]:
    """The optimizer classes of torch.optim, those that are refused among them."""
    found = {name: value for name, value in vars(torch.optim).items() if inspect.isclass(value)}
    return sorted(name for name, value in found.items() if issubclass(value, Optimizer) and value is not Optimizer)


def optimizer_class(name: str) -> type[Optimizer]:
    """The optimizer of that name. Raises SpecError at /optimizer/name where there is none, or where the loop cannot serve it."""
    known = [each for each in optimizer_names() if each not in REFUSED_OPTIMIZERS]
    if name in REFUSED_OPTIMIZERS:
        raise SpecError.at("/optimizer/name", f"{name} {REFUSED_OPTIMIZERS[name]}; use one of {', '.join(known)}")
    if name not in known:
        raise SpecError.at("/optimizer/name", f"torch.optim has no '{name}'.{did_you_mean(name, known)}")
    found: type[Optimizer] = getattr(torch.optim, name)
    return found


def schedule_class(name: str, pointer: str) -> type[Any]:
    """The scheduler of that name. Raises SpecError at `pointer`/name where there is none, or where a job cannot use it."""
    if name in REFUSED_SCHEDULES:
        raise SpecError.at(f"{pointer}/name", f"{name} {REFUSED_SCHEDULES[name]}; there are {', '.join(FORMS)}")
    if name not in FORMS:
        known = did_you_mean(name, FORMS, len(FORMS))
        raise SpecError.at(f"{pointer}/name", f"there is no schedule '{name}'.{known}")
    found: type[Any] = getattr(lr_scheduler, name)
    return found


def schedule_defaults(name: str) -> dict[str, Any]:
    """The keywords of a schedule with torch's defaults; None for what has to be given, or is filled in from the job."""
    found = keyword_defaults(getattr(lr_scheduler, name), REFUSED_SCHEDULE_KEYWORDS)
    return {**found, **({LENGTHS[name]: None} if name in LENGTHS else {})}


def default_per(name: str) -> Literal["step", "epoch"]:
    """What the numbers of a schedule count by default."""
    return "step" if name in LENGTHS else "epoch"


def build_loss(spec: LossSpec) -> nn.Module:
    """The loss, on the CPU. A list given for a tensor (`weight`) becomes one. Raises SpecError below /loss."""
    if spec.name not in loss_names():
        raise SpecError.at("/loss/name", f"torch.nn has no loss '{spec.name}'.{did_you_mean(spec.name, loss_names())}")
    target = getattr(nn, spec.name)
    faults = check_keywords(target, spec.keywords, "/loss", refused=_REFUSED_LOSS_KEYWORDS)
    if spec.keywords.get("reduction", "mean") != "mean":
        faults.append(Fault("/loss/reduction", "an iteration's loss is the mean over its batch; only 'mean' is served"))
    if faults:
        raise SpecError(*faults)
    hints = _hints(target)
    keywords = {key: _tensor(value) if _is_tensor(hints.get(key)) else value for key, value in spec.keywords.items()}
    try:
        loss: nn.Module = target(**keywords)
    except Exception as error:
        raise SpecError.at(_only_keyword(spec), f"{spec.name} cannot be made: {error}. {_FIT}") from error
    return loss


def check_loss(loss: nn.Module, spec: LossSpec, classes: int, labels: Tensor) -> None:
    """Run one small batch of outputs (float32 [B, classes]) and real `labels` (int64 [B]) through the loss.

    Raises SpecError below /loss where that fails.
    """
    for key in ("weight", "pos_weight"):
        given = spec.keywords.get(key)
        if isinstance(given, list) and len(given) != classes:
            raise SpecError.at(f"/loss/{key}", f"it has {len(given)} numbers, but the dataset has {classes} classes")
    if any(True for _ in loss.parameters()):
        raise SpecError.at("/loss/name", f"{spec.name} has parameters of its own, which no optimizer would train. {_FIT}")
    # A batch as large as the classes (or of one) would let a loss that compares shapes broadcast, and pass.
    batch = next(size for size in (2, 3) if size != classes)
    outputs = torch.randn(batch, classes, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = labels[:1].repeat(batch) if len(labels) < batch else labels[:batch]
    try:
        with warnings.catch_warnings(action="error"):
            value = loss(outputs, targets)
        if value.ndim or not value.requires_grad:
            raise ValueError(f"it gives {list(value.shape)} numbers, not one to train by")
    except Exception as error:
        reason = str(error).splitlines()[0].rstrip(".")
        if spec.keywords and _fits(spec.name, outputs, targets):
            raise SpecError.at(_only_keyword(spec), f"{spec.name} refuses it: {reason}") from error
        raise SpecError.at("/loss/name", f"{spec.name} does not fit class-index targets: {reason}. {_FIT}") from error


def check_keywords(
    target: Callable[..., Any],
    keywords: Mapping[str, Any],
    pointer: str,
    *,
    refused: Mapping[str, str] = {},
    more: Collection[str] = (),
    ours: Collection[str] = (),
    open_ended: bool = False,
) -> list[Fault]:
    """The faults of `keywords` as keywords of `target`, by its signature and its annotations.

    `refused` are keywords that are ours to set, with the reason; `more` are known beside the signature; `ours` are the keys
    of the spec that stand beside them, and may have been meant; `open_ended` lets unknown ones through where the signature
    has `**kwargs`.
    """
    parameters = inspect.signature(target).parameters
    named = [key for key, one in parameters.items() if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)]
    known = [*(key for key in named if key not in refused), *more]
    lets_through = open_ended and any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    hints = _hints(target)
    faults = []
    for key, value in keywords.items():
        here = pointer + pointer_of(key)
        if key in refused:
            faults.append(Fault(here, refused[key]))
        elif key in known:
            faults += [Fault(here, message) for message in [_misfit(hints.get(key), value)] if message]
        elif not lets_through:
            name = getattr(target, "__name__", "it")
            takes = did_you_mean(key, [*known, *ours]) or f" {name} takes none."
            faults.append(Fault(here, f"unknown keyword of {name}.{takes}"))
    return faults


def keyword_defaults(target: Callable[..., Any], without: Collection[str]) -> dict[str, Any]:
    """The keywords of `target` with their defaults, as JSON has them; null also for those without one."""
    found = {}
    for key, one in inspect.signature(target).parameters.items():
        if key not in without and one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD):
            default = None if one.default is one.empty else one.default
            found[key] = list(default) if isinstance(default, tuple) else default
    return found


def catalog_request(payload: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001  (each request of a sandbox has one)
    """Everything that a spec may name, as JSON: GET /catalog."""
    labels = torch.tensor([0, 1])
    losses = {
        name: {
            "keywords": keyword_defaults(getattr(nn, name), (*_REFUSED_LOSS_KEYWORDS, "reduction")),
            "refused": _refusal(LossSpec(name=name), labels),
        }
        for name in loss_names()
    }
    optimizers = {
        name: {
            "keywords": keyword_defaults(getattr(torch.optim, name), REFUSED_OPTIMIZER_KEYWORDS),
            "refused": REFUSED_OPTIMIZERS.get(name),
        }
        for name in optimizer_names()
    }
    schedules: dict[str, Any] = {
        name: {"keywords": schedule_defaults(name), "refused": None, "per": default_per(name)} for name in FORMS
    }
    for name, reason in REFUSED_SCHEDULES.items():
        schedules[name] = {"keywords": {}, "refused": reason, "per": None}
    from core import augment  # noqa: PLC0415 - it checks keywords by this module

    names = model_names()
    return {
        "datasets": dataset_sources(),
        "models": [f"torchvision:{name}" for name in names] + [f"timm:{name}" for name in timm_models.names()],
        "pretrained": {f"torchvision:{name}": list(vision.get_model_weights(name).__members__) for name in names},
        "augmentations": {
            name: {"keywords": {} if name in augment.REFUSED else augment.keywords_of(name), "refused": augment.REFUSED.get(name)}
            for name in augment.names()
        },
        "losses": losses,
        "optimizers": optimizers,
        "schedules": schedules,
    }


def _fits(name: str, outputs: Tensor, targets: Tensor) -> bool:
    """Whether that loss works without keywords."""
    try:
        getattr(nn, name)()(outputs, targets)
    except Exception:
        return False
    return True


def _only_keyword(spec: LossSpec) -> str:
    return pointer_of("loss", *spec.keywords) if len(spec.keywords) == 1 else "/loss"


def _refusal(spec: LossSpec, labels: Tensor) -> str | None:
    try:
        check_loss(build_loss(spec), spec, 3, labels)
    except SpecError as error:
        return error.faults[0].message.removesuffix(f" {_FIT}")
    return None


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Annotations, resolved; none where they name what cannot be found."""
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # evaluating annotations runs a person's own text
        return {}


def _is_tensor(hint: Any) -> bool:
    return hint is Tensor or Tensor in getattr(hint, "__args__", ())


def _tensor(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float32) if isinstance(value, list) else value


def _misfit(hint: Any, value: Any) -> str | None:
    """Why `value` does not fit the annotation, read strictly as JSON (a list may be a tuple, an int a float)."""
    if hint is None or hint is Any:
        return None
    if _is_tensor(hint) and isinstance(value, list):
        numbers = all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)
        return None if numbers else "expects a list of numbers"
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return f"expects {_shown(hint)}, got {json.dumps(value)}"
    except (PydanticUserError, TypeError, NameError):  # an annotation that is no type
        return None
    return None


def _shown(hint: Any) -> str:
    text = inspect.formatannotation(hint).replace("typing.", "").replace("collections.abc.", "")
    if hint is Tensor or text in {"torch.Tensor | None", "Optional[torch.Tensor]"}:
        return "a list of numbers"
    return text.replace(" | torch.Tensor", "").replace("torch.Tensor | ", "")
