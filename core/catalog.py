"""Names and what they mean: models, optimizers, schedules; and everything that a spec may name."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch.optim import Optimizer, lr_scheduler
from torchvision import models as vision

from core import timm_models
from core.augmentation import transforms
from core.data.datasets import dataset_sources
from core.errors import SpecError, did_you_mean
from core.keywords import keyword_defaults
from core.loss.losses import loss_table
from core.optimizer.forms import FORMS

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


def model_names() -> list[str]:
    """Models of torchvision for the classification of images (detection, segmentation, video and the like left out)."""
    names: list[str] = vision.list_models(module=vision)
    return names


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


def catalog_request(payload: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001  (each request of a sandbox has one)
    """Everything that a spec may name, as JSON: GET /catalog."""
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
    names = model_names()
    return {
        "datasets": dataset_sources(),
        "models": [f"torchvision:{name}" for name in names] + [f"timm:{name}" for name in timm_models.names()],
        "pretrained": {f"torchvision:{name}": list(vision.get_model_weights(name).__members__) for name in names},
        "augmentations": {
            name: {
                "keywords": {} if name in transforms.REFUSED else transforms.keywords_of(name),
                "refused": transforms.REFUSED.get(name),
            }
            for name in transforms.names()
        },
        "losses": loss_table(),
        "optimizers": optimizers,
        "schedules": schedules,
    }
