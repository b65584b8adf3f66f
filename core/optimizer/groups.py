"""Parameter groups as they run: the optimizer over them, its state by name, and the table for people.

A person may address any parameter, down to one group for each; groups with equal hyper-parameters are run as one, because an
optimizer's step costs host time per group. That changes no arithmetic: the result is the same bit for bit.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from core.catalog import optimizer_class
from core.events import GroupRow, GroupsData, ParameterRow
from core.optimizer.assignment import Group, resolve
from core.optimizer.freezing import freeze
from core.optimizer.hyperparameters import as_torch, dampened
from core.spec import OptimizerSpec


def build_optimizer(
    model: nn.Module,
    spec: OptimizerSpec,
    device: torch.device,
    head: Collection[str] = (),
    schedule: Callable[[list[Group]], list[Group]] = list,
) -> tuple[Optimizer, list[Group]]:
    """The optimizer of `spec` over the model's parameters, and its groups. `head`: the names of the modules that are the head.

    `schedule` gives the groups their curves (`core.optimizer.schedules.assign`). Also freezes what is frozen in the first
    epoch. Raises SpecError below /optimizer.
    """
    groups = schedule(resolve(model, spec, head))
    freeze(model, groups, epoch=0)
    target = optimizer_class(spec.name)
    keywords = {**as_torch(spec.keywords), **implementation(spec, device)}
    optimizer = target(coalesced(groups), **keywords)
    if isinstance(optimizer, SGD) and keywords.get("fused"):
        optimizer.register_step_pre_hook(_begin_momentum)
    return optimizer, groups


def coalesced(groups: Iterable[Group]) -> list[dict[str, Any]]:
    """Groups with equal hyper-parameters and schedules as one, as torch's constructors take them; `names` says which they were.

    `curve` is that of their lr, or None.
    """
    merged: dict[str, dict[str, Any]] = {}
    for group in groups:
        moved = [group.curve.changes, group.curve.held] if group.curve else None
        key = json.dumps([group.hyperparameters, group.schedule, moved], sort_keys=True)
        one = merged.setdefault(key, {**group.hyperparameters, "params": [], "names": [], "curve": group.curve})
        one["params"] += [(member.name, member.tensor) for member in group.members]
        one["names"].append(group.name)
    return list(merged.values())


def adjusted(groups: Sequence[Group], name: str, changes: Mapping[str, Any]) -> list[Group]:
    """The groups with other hyper-parameters in the one called `name`, or in all parts of the spec's group of that name.

    The values go unchecked. Raises KeyError where there is no such group, or no such hyper-parameter.
    """
    chosen = [group for group in groups if name in {group.name, group.of}]
    if not chosen:
        raise KeyError(name)
    if unknown := changes.keys() - chosen[0].hyperparameters.keys():
        raise KeyError(*unknown)
    new = as_torch(changes)
    return [
        replace(group, hyperparameters={**group.hyperparameters, **new}) if any(group is one for one in chosen) else group
        for group in groups
    ]


def regroup(optimizer: Optimizer, groups: Iterable[Group]) -> None:
    """Let a running optimizer go on with these groups of the same parameters. Each parameter keeps its state.

    State that the new values ask for and the old ones did not (RMSprop's momentum, Adam's amsgrad) begins at zero, as in a
    parameter's first step.
    """
    optimizer.param_groups.clear()
    for group in coalesced(groups):
        optimizer.add_param_group(group)
        begun = _first_state(optimizer, group)
        for tensor in group["params"]:
            state = optimizer.state.get(tensor, {})
            for key in begun if state else ():  # what has taken no step yet begins by itself
                state.setdefault(key, torch.zeros_like(tensor, memory_format=torch.preserve_format))


def report(groups: Sequence[Group], spec: OptimizerSpec, device: torch.device) -> GroupsData:
    """The table of groups, and of each parameter, for people."""
    rows = [
        GroupRow(
            name=group.name,
            of=group.of,
            hyperparameters={
                key: list(value) if isinstance(value, tuple) else value for key, value in group.hyperparameters.items()
            },
            schedule=group.schedule,
            frozen=group.frozen_in(0),
            until_epoch=group.until_epoch,
            tensors=len(group.members),
            elements=sum(member.tensor.numel() for member in group.members),
            parameters=[member.name for member in group.members],
        )
        for group in groups
    ]
    parameters = [
        ParameterRow(
            names=list(member.names),
            group=group.name,
            shape=list(member.tensor.shape),
            elements=member.tensor.numel(),
            depth=member.depth,
            roles=list(member.roles),
            type=member.type,
            frozen="model" if not member.trainable else "group" if group.frozen_in(0) else None,
        )
        for group in groups
        for member in group.members
    ]
    return GroupsData(
        optimizer=spec.name, groups=rows, executed_groups=len(coalesced(groups)), fused=fused(spec, device), parameters=parameters
    )


def implementation(spec: OptimizerSpec, device: torch.device) -> dict[str, bool]:
    """`fused` where torch has such a kernel for this optimizer and device, unless the spec says how it is to run."""
    takes_it = "fused" in inspect.signature(optimizer_class(spec.name)).parameters and not dampened(spec)
    if not takes_it or spec.keywords.keys() & {"fused", "foreach"} or device.type not in {"cpu", "cuda"}:
        return {}
    return {"fused": True}


def fused(spec: OptimizerSpec, device: torch.device) -> bool:
    """Whether the optimizer runs fused on that device."""
    return bool({**spec.keywords, **implementation(spec, device)}.get("fused"))


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
    named = list(_named(optimizer))
    if unknown := sorted(set(state) - {name for name, _ in named}):
        raise ValueError(f"optimizer state of parameters that are not here: {', '.join(unknown[:8])}")
    positional = {
        index: {key: _laid_out_as(one, value) for key, value in state[name].items()}
        for index, (name, one) in enumerate(named)
        if name in state
    }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": positional})
    for index, (_, one) in enumerate(named):
        if "mu_product" in positional.get(index, ()):  # NAdam reads it on the host, each step; torch moved it to the device
            optimizer.state[one]["mu_product"] = positional[index]["mu_product"]


def _begin_momentum(optimizer: Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG001 - a hook is given them
    """Before a step: the momentum of what has none yet is zero, which in the step becomes the gradient, as torch begins it.

    Of a group torch's fused kernel can begin all momenta in one step or none, and where fp16 skips that step it leaves them
    unwritten (torch 2.15, `torch.optim.sgd._fused_sgd`). But what thaws begins later than what it runs together with.
    """
    for group in optimizer.param_groups:
        for one in group["params"] if group["momentum"] else ():
            if one.grad is not None and (state := optimizer.state[one]).get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(one, memory_format=torch.preserve_format)


def _named(optimizer: Optimizer) -> Iterable[tuple[str, torch.Tensor]]:
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def _laid_out_as(parameter: torch.Tensor, value: Any) -> Any:
    """`value` in the parameter's order in memory: torch's fused kernels on the CPU go through both as they lie, unasked."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _first_state(optimizer: Optimizer, group: Mapping[str, Any]) -> list[str]:
    """What of a parameter's own shape this optimizer keeps for it, with the values of that group."""
    target = type(optimizer)
    parameter = nn.Parameter(torch.zeros(2, 3))
    trial = target([parameter], **{key: value for key, value in group.items() if key in inspect.signature(target).parameters
                                   and key != "params"})  # fmt: skip
    parameter.grad = torch.zeros_like(parameter)
    trial.step()
    kept = trial.state[parameter].items()
    return [key for key, value in kept if isinstance(value, torch.Tensor) and value.shape == parameter.shape]
