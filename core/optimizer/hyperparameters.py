"""The values that an optimizer and its groups are given, checked by the optimizer itself before there is a model."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from core.catalog import REFUSED_OPTIMIZER_KEYWORDS, optimizer_class
from core.errors import Fault, pointer_of
from core.keywords import check_keywords
from core.spec import GroupSpec, OptimizerSpec

_NOT_IN_A_GROUP = {
    **REFUSED_OPTIMIZER_KEYWORDS,
    "foreach": "it is how the whole optimizer runs; give it beside the optimizer's name",
    "fused": "it is how the whole optimizer runs; give it beside the optimizer's name",
    "initial_accumulator_value": "Adagrad takes it for all groups alike; give it beside the optimizer's name",
}


def check_optimizer(spec: OptimizerSpec) -> list[Fault]:
    """The faults of the keywords and their values, of the optimizer and of each group. Raises SpecError for its name.

    torch checks the values of the optimizer but not those of a group: so each group's are tried as an optimizer's.
    """
    target = optimizer_class(spec.name)
    faults = check_keywords(
        target, spec.keywords, "/optimizer", refused=REFUSED_OPTIMIZER_KEYWORDS, ours=OptimizerSpec.model_fields
    )
    faults = faults or _check_values(target, {}, spec.keywords, "/optimizer")
    if faults:
        return faults
    sound: set[str] = set()
    for index, group in enumerate(spec.groups):
        content = json.dumps(group.keywords, sort_keys=True)
        if content in sound:
            continue
        here = pointer_of("optimizer", "groups", index)
        found = check_keywords(target, group.keywords, here, refused=_NOT_IN_A_GROUP, ours=GroupSpec.model_fields)
        found = found or _check_values(target, spec.keywords, group.keywords, here)
        faults += found
        if not found:
            sound.add(content)
    if spec.keywords.get("fused") and dampened(spec):
        message = "with dampening SGD cannot run fused here, as what thaws begins later; leave fused out"
        faults.append(Fault("/optimizer/fused", message))
    return faults


def defaults(spec: OptimizerSpec) -> dict[str, Any]:
    """Every hyper-parameter that a group of this optimizer has, at the optimizer's own value."""
    target = optimizer_class(spec.name)
    known = inspect.signature(target).parameters
    found = _trial(target, spec.keywords).defaults
    return {key: value for key, value in found.items() if key in known and key not in _NOT_IN_A_GROUP}


def dampened(spec: OptimizerSpec) -> bool:
    """Whether the gradient's share of a momentum is smaller than one, but for a parameter's first step."""
    return any(keywords.get("dampening") for keywords in (spec.keywords, *(group.keywords for group in spec.groups)))


def as_torch(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where torch has tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in keywords.items()}


def _check_values(
    target: Callable[..., Optimizer], base: Mapping[str, Any], keywords: Mapping[str, Any], pointer: str
) -> list[Fault]:
    """What the constructor says of these values, at the keyword to blame where there is one alone."""
    error = _refusal(target, {**base, **keywords})
    if error is None:
        return []
    blamed = [key for key, value in keywords.items() if _refusal(target, {**base, key: value})]
    return [Fault(pointer + (pointer_of(blamed[0]) if len(blamed) == 1 else ""), f"torch refuses it: {error}")]


def _refusal(target: Callable[..., Optimizer], keywords: Mapping[str, Any]) -> str | None:
    try:
        _trial(target, keywords)
    except Exception as error:  # ValueError, TypeError, RuntimeError, IndexError: each optimizer has its own
        return str(error) or type(error).__name__
    return None


def _trial(target: Callable[..., Optimizer], keywords: Mapping[str, Any]) -> Optimizer:
    return target([nn.Parameter(torch.zeros(2, 2, device="cpu"))], **as_torch(keywords))
