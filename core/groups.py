"""Parameter groups: which parameter is in which, and the optimizer that runs them.

A person may address any parameter, down to one group for each; groups with equal hyper-parameters are run as one, because an
optimizer's step costs host time per group. That changes no arithmetic: the result is the same bit for bit.
"""

from __future__ import annotations

import fnmatch
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from core.catalog import optimizer_class
from core.curves import Curve
from core.errors import Fault, SpecError, did_you_mean, pointer_of
from core.events import GroupRow, GroupsData
from core.hyperparameters import as_torch, check_optimizer, defaults
from core.spec import GroupSpec, OptimizerSpec

POINTER = "/optimizer"


@dataclass(frozen=True)
class Group:
    """A parameter group as the spec has it: its parameters by name, and all its hyper-parameters."""

    name: str
    hyperparameters: dict[str, Any]
    frozen: bool
    parameters: list[tuple[str, nn.Parameter]]
    curve: Curve | None = None
    """Of its lr, where that is scheduled."""

    @property
    def schedule(self) -> dict[str, Any] | None:
        """Its schedule as JSON, with everything filled in."""
        return self.curve.schedule.model_dump(exclude_none=True) if self.curve else None


def build_optimizer(
    model: nn.Module, spec: OptimizerSpec, device: torch.device, schedule: Callable[[list[Group]], list[Group]] = list
) -> tuple[Optimizer, GroupsData]:
    """The optimizer of `spec` over the model's parameters, and the table of its groups.

    `schedule` gives the groups their curves (`core.schedules.assign`). Also freezes: the parameters of frozen groups have
    `requires_grad` False from here on. Raises SpecError below /optimizer.
    """
    groups = schedule(resolve(model, spec))
    freeze(groups)
    target = optimizer_class(spec.name)
    keywords = {**as_torch(spec.keywords), **implementation(spec, device)}
    optimizer = target(coalesced(groups), **keywords)
    return optimizer, report(groups, spec, device)


def resolve(model: nn.Module, spec: OptimizerSpec) -> list[Group]:
    """Each parameter's group, in the spec's order, `default` last. Changes nothing. Raises SpecError with every fault."""
    faults = check_optimizer(spec)
    members, rest = _assign(model, spec.groups, spec.group_names, faults)
    if faults:
        raise SpecError(*faults)
    base = defaults(spec)
    groups = [
        Group(name, {**base, **as_torch(one.keywords)}, one.freeze, parameters)
        for name, one, parameters in zip(spec.group_names, spec.groups, members, strict=True)
    ]
    if rest:
        groups.append(Group("default", base, False, rest))
    _check_parameters(groups, spec)
    return groups


def freeze(groups: Iterable[Group]) -> None:
    """Set `requires_grad` False in frozen groups. They stay in the optimizer: without a gradient no step moves them."""
    for group in groups:
        if group.frozen:
            for _, parameter in group.parameters:
                parameter.requires_grad_(False)


def coalesced(groups: Iterable[Group]) -> list[dict[str, Any]]:
    """Groups with equal hyper-parameters and schedules as one, as torch's constructors take them; `names` says which they were.

    `curve` is that of their lr, or None.
    """
    merged: dict[str, dict[str, Any]] = {}
    for group in groups:
        key = json.dumps([group.hyperparameters, group.schedule], sort_keys=True)
        one = merged.setdefault(key, {**group.hyperparameters, "params": [], "names": [], "curve": group.curve})
        one["params"] += group.parameters
        one["names"].append(group.name)
    return list(merged.values())


def report(groups: list[Group], spec: OptimizerSpec, device: torch.device) -> GroupsData:
    """The table of groups, for people."""
    rows = [
        GroupRow(
            name=group.name,
            hyperparameters={
                key: list(value) if isinstance(value, tuple) else value for key, value in group.hyperparameters.items()
            },
            schedule=group.schedule,
            frozen=group.frozen,
            tensors=len(group.parameters),
            elements=sum(parameter.numel() for _, parameter in group.parameters),
            parameters=[name for name, _ in group.parameters],
        )
        for group in groups
    ]
    return GroupsData(optimizer=spec.name, groups=rows, executed_groups=len(coalesced(groups)), fused=fused(spec, device))


def implementation(spec: OptimizerSpec, device: torch.device) -> dict[str, bool]:
    """`fused` where torch has such a kernel for this optimizer and device, unless the spec says how it is to run."""
    takes_it = "fused" in inspect.signature(optimizer_class(spec.name)).parameters
    if not takes_it or spec.keywords.keys() & {"fused", "foreach"} or device.type not in {"cpu", "cuda"}:
        return {}
    return {"fused": True}


def fused(spec: OptimizerSpec, device: torch.device) -> bool:
    """Whether the optimizer runs fused on that device."""
    return bool({**spec.keywords, **implementation(spec, device)}.get("fused"))


def set_train_mode(model: nn.Module) -> None:
    """`model.train()`, except for norms all of whose own parameters are frozen: their running statistics stay as they are.

    `requires_grad` alone does not stop them (pytorch #86590), and an eval() set once is undone by the next train().
    """
    model.train()
    for module in model.modules():
        if isinstance(module, _NormBase):
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """The lr of each group by its name in the spec (`default` for the rest)."""
    return {name: float(group["lr"]) for group in optimizer.param_groups for name in group["names"]}


def optimizer_state(optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """What the optimizer remembers of each parameter, by the parameter's name. Those without any (frozen ones) are left out."""
    return {name: dict(optimizer.state[one]) for name, one in _named(optimizer) if one in optimizer.state}


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Put back what `optimizer_state` gave, by name, whatever the order of groups is now.

    Hyper-parameters stay as they are: torch's own state dict goes by position, and would overwrite them. Raises ValueError
    where `state` names parameters that the optimizer does not have.
    """
    names = [name for name, _ in _named(optimizer)]
    if unknown := sorted(set(state) - set(names)):
        raise ValueError(f"optimizer state of parameters that are not here: {', '.join(unknown[:8])}")
    positional = {index: dict(state[name]) for index, name in enumerate(names) if name in state}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": positional})


def _named(optimizer: Optimizer) -> Iterable[tuple[str, torch.Tensor]]:
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def _assign(
    model: nn.Module, specs: list[GroupSpec], names: list[str], faults: list[Fault]
) -> tuple[list[list[tuple[str, nn.Parameter]]], list[tuple[str, nn.Parameter]]]:
    """The parameters of each group, and those of none; adds the rules that match nothing, or nothing that is left."""
    parameters = dict(model.named_parameters())
    first_name = {id(parameter): name for name, parameter in parameters.items()}
    # A tied parameter has several names; any of them addresses it, it is listed once, under its first.
    aliases = {name: first_name[id(one)] for name, one in model.named_parameters(remove_duplicate=False)}
    owner: dict[str, int] = {}
    for index, group in enumerate(specs):
        for position, pattern in enumerate(group.patterns):
            pointer = pointer_of("optimizer", "groups", index, "params", *([] if isinstance(group.params, str) else [position]))
            try:
                hits = dict.fromkeys(aliases[name] for name in _matching(pattern, aliases))
            except re.error as error:
                faults.append(Fault(pointer, f"'{pattern}' is no regular expression: {error}"))
                continue
            if not hits:
                faults.append(Fault(pointer, f"'{pattern}' matches no parameter.{_near(pattern, parameters)}"))
            elif all(owner.get(name, index) != index for name in hits):
                earlier = ", ".join(dict.fromkeys(f"'{names[owner[name]]}'" for name in hits))
                faults.append(Fault(pointer, f"all that '{pattern}' matches is in {earlier} before: this rule has no effect"))
            for name in hits:
                owner.setdefault(name, index)
    members: list[list[tuple[str, nn.Parameter]]] = [[] for _ in specs]
    rest: list[tuple[str, nn.Parameter]] = []
    for name, parameter in parameters.items():
        (members[owner[name]] if name in owner else rest).append((name, parameter))
    return members, rest


def _matching(pattern: str, names: Mapping[str, str]) -> list[str]:
    if pattern.startswith("re:"):
        match: Callable[[str], object] = re.compile(pattern[3:]).fullmatch
    elif any(sign in pattern for sign in "*?["):
        match = re.compile(fnmatch.translate(pattern)).match
    else:
        return [pattern] if pattern in names else []
    return [name for name in names if match(name)]


def _near(pattern: str, names: Iterable[str]) -> str:
    """What may have been meant: a name for a name, a module's glob for a pattern."""
    if not any(sign in pattern for sign in "*?[:"):
        return did_you_mean(pattern, names)
    parts = [name.split(".") for name in names]
    depth = max((len(each) for each in parts), default=0)
    globs = dict.fromkeys(".".join(each[:level]) + ".*" for level in range(1, depth) for each in parts if len(each) > level)
    return did_you_mean(pattern, globs)


def _check_parameters(groups: list[Group], spec: OptimizerSpec) -> None:
    every = [(group, name, parameter) for group in groups for name, parameter in group.parameters]
    if not any(parameter.requires_grad and not group.frozen for group, _, parameter in every):
        what = "every parameter is frozen: nothing would train" if every else "the model has no parameters"
        raise SpecError.at(f"{POINTER}/groups", what)
    if spec.name == "Muon":
        odd = next(((name, one.ndim) for _, name, one in every if one.ndim != 2), None)
        if odd:
            raise SpecError.at(
                f"{POINTER}/name", f"Muon takes matrices alone, but '{odd[0]}' has {odd[1]} dimensions; use AdamW or SGD"
            )
