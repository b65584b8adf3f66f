"""Which parameter is in which group: each in exactly one.

The groups of the spec are gone through in order, the first that matches a parameter has it. `layer_decay` and `no_decay` then
make finer groups of them, where parameters of one differ in lr or weight decay; what a group says itself, they leave alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from core.errors import Fault, SpecError, pointer_of
from core.optimizer.curves import Curve
from core.optimizer.hyperparameters import as_torch, check_optimizer, defaults
from core.optimizer.parameters import Parameter, exempt_of, parameters_of, spared_decay
from core.optimizer.selectors import deepest, select
from core.spec import OptimizerSpec

POINTER = "/optimizer"
REST = "default"
"""The group of what no group of the spec matches."""


@dataclass(frozen=True)
class Group:
    """A parameter group as it trains: its parameters, and all its hyper-parameters.

    `of` is the group of the spec that it is, or is a part of: `layer_decay` and `no_decay` make several of one, called
    `head/no_decay` or, of what no group matches, `depth-3`.
    """

    name: str
    of: str
    hyperparameters: dict[str, Any]
    freeze: bool
    until_epoch: int | None
    """Where it is frozen for a time: the first epoch that trains it, from 0."""
    members: list[Parameter]
    curve: Curve | None = None
    """Of its lr, where that is scheduled."""

    @property
    def schedule(self) -> dict[str, Any] | None:
        """Its schedule as JSON, with everything filled in."""
        return self.curve.schedule.model_dump(exclude_none=True) if self.curve else None

    def frozen_in(self, epoch: int) -> bool:
        """Whether it is frozen in that epoch, from 0."""
        return self.freeze and (self.until_epoch is None or epoch < self.until_epoch)


def resolve(model: nn.Module, spec: OptimizerSpec, head: Collection[str] = ()) -> list[Group]:
    """Each parameter's group, in the spec's order, the rest last. Changes nothing. Raises SpecError with every fault."""
    faults = check_optimizer(spec)
    parameters = parameters_of(model, head)
    base = {} if faults else defaults(spec)
    whole = _assigned(parameters, spec, base, faults)
    spared = _spared(model, spec, parameters, faults)
    if faults:
        raise SpecError(*faults)
    groups = [part for group in whole for part in _finer(group, spec, spared, deepest(parameters))]
    _check_names(groups, spec)
    _check_effect(whole, spec, spared)
    _check_parameters(groups, spec)
    _prove(model, groups)
    return groups


def _assigned(parameters: Sequence[Parameter], spec: OptimizerSpec, base: Mapping[str, Any], faults: list[Fault]) -> list[Group]:
    """The groups as the spec names them, and the rest; adds the rules that match nothing, or nothing that is left."""
    owner: dict[str, int] = {}
    for index, one in enumerate(spec.groups):
        pointer = pointer_of("optimizer", "groups", index)
        names, rules = select(one, parameters, pointer, faults)
        late = [rule for rule in rules if rule.hits and all(owner.get(name, index) != index for name in rule.hits)]
        for rule in late[:1] if len(late) == len(rules) > 1 and len(one.selectors) > 1 else late:
            earlier = ", ".join(dict.fromkeys(f"'{spec.group_names[owner[name]]}'" for name in names if name in rule.hits))
            faults.append(Fault(rule.pointer, f"all that {rule.shown} matches is in {earlier} before: this rule has no effect"))
        for name in names:
            owner.setdefault(name, index)
    groups = []
    for index, (name, one) in enumerate(zip(spec.group_names, spec.groups, strict=True)):
        members = [member for member in parameters if owner.get(member.name) == index]
        values = {**base, **as_torch(one.keywords)}
        groups.append(Group(name, name, values, bool(one.freeze), one.until_epoch, members))
    rest = [member for member in parameters if member.name not in owner]
    return [*groups, *([Group(REST, REST, dict(base), False, None, rest)] if rest else [])]


def _spared(model: nn.Module, spec: OptimizerSpec, parameters: Sequence[Parameter], faults: list[Fault]) -> set[str]:
    """The names of the parameters that `no_decay` means."""
    if isinstance(spec.no_decay, bool):
        exempt = exempt_of(model)
        return {one.name for one in parameters if spec.no_decay and spared_decay(one, exempt)}
    pointers = [pointer_of("optimizer", "no_decay", index) for index in range(len(spec.no_decay))]
    chosen = zip(spec.no_decay, pointers, strict=True)
    return {name for selector, pointer in chosen for name in select(selector, parameters, pointer, faults)[0]}


def _finer(group: Group, spec: OptimizerSpec, spared: set[str], last: int) -> list[Group]:
    """The parts of a group with an lr and a weight_decay of their own; the group itself where it is all alike.

    What the group says itself is not changed. An lr at a depth is lr · layer_decay^(last - depth), as BEiT's fine-tuning has
    it.
    """
    said = dict(zip(spec.group_names, spec.groups, strict=True))
    own = said[group.of].keywords if group.of in said else {}
    by_depth = spec.layer_decay is not None and "lr" not in own
    by_decay = "weight_decay" not in own
    parts: dict[tuple[int, bool], list[Parameter]] = {}
    for member in group.members:
        parts.setdefault((member.depth if by_depth else last, by_decay and member.name in spared), []).append(member)
    depths = {depth for depth, _ in parts}
    finer = []
    for (depth, free), members in sorted(parts.items(), key=lambda part: part[0]):
        suffixes = [f"depth-{depth}"] * (len(depths) > 1) + ["no_decay"] * (free and (depth, False) in parts)
        head = [] if group.of == REST and len(depths) > 1 else [group.of]
        values = dict(group.hyperparameters)
        if by_depth and spec.layer_decay is not None:
            values["lr"] *= spec.layer_decay ** (last - depth)
        if free:
            values["weight_decay"] = 0.0
        finer.append(replace(group, name="/".join([*head, *suffixes]), hyperparameters=values, members=members))
    return finer


def _check_names(groups: Sequence[Group], spec: OptimizerSpec) -> None:
    """A group's name may be what a part of another is called."""
    taken = {group.name: group for group in groups if group.name != group.of}
    faults = [
        Fault(
            pointer_of("optimizer", "groups", index, "name"), f"a part of '{taken[name].of}' is called that; choose another name"
        )
        for index, name in enumerate(spec.group_names)
        if name in taken
    ]
    if faults:
        raise SpecError(*faults)


def _check_effect(whole: Sequence[Group], spec: OptimizerSpec, spared: set[str]) -> None:
    """A setting that has no effect is an error."""
    said = dict(zip(spec.group_names, spec.groups, strict=True))
    own = {group.name: said[group.name].keywords if group.name in said else {} for group in whole}
    faults = []
    if spec.layer_decay is not None:
        depths = {member.depth for group in whole if "lr" not in own[group.name] for member in group.members}
        if not depths:
            faults.append(Fault(f"{POINTER}/layer_decay", "every group says its own lr: it has no effect; leave one of them out"))
        elif max(depths) == 0:
            faults.append(Fault(f"{POINTER}/layer_decay", "the model has one depth alone: it has no effect; leave it out"))
    if spec.no_decay:
        open_ = [group for group in whole if "weight_decay" not in own[group.name]]
        if not all("weight_decay" in group.hyperparameters for group in whole):
            faults.append(Fault(f"{POINTER}/no_decay", f"{spec.name} has no weight_decay; leave it out"))
        elif not any(group.hyperparameters["weight_decay"] for group in open_):
            what = "weight_decay is 0" if open_ else "every group says its own weight_decay"
            faults.append(Fault(f"{POINTER}/no_decay", f"{what}: it has no effect; set weight_decay beside it, or leave it out"))
        elif not any(member.name in spared for group in open_ for member in group.members):
            what = "every parameter that it means is in a group with its own weight_decay" if spared else "it means no parameter"
            faults.append(Fault(f"{POINTER}/no_decay", f"{what}: it has no effect"))
    if faults:
        raise SpecError(*faults)


def _check_parameters(groups: Sequence[Group], spec: OptimizerSpec) -> None:
    every = [(group, member) for group in groups for member in group.members]
    if not any(member.trainable and not group.frozen_in(0) for group, member in every):
        later = any(group.until_epoch is not None for group in groups)
        what = "every parameter is frozen: nothing would train" + (" in the first epoch" if later else "")
        raise SpecError.at(f"{POINTER}/groups", what if every else "the model has no parameters")
    if spec.name == "Muon":
        odd = next(((member.name, member.tensor.ndim) for _, member in every if member.tensor.ndim != 2), None)
        if odd:
            raise SpecError.at(
                f"{POINTER}/name", f"Muon takes matrices alone, but '{odd[0]}' has {odd[1]} dimensions; use AdamW or SGD"
            )


def _prove(model: nn.Module, groups: Sequence[Group]) -> None:
    """Every parameter of the model is in exactly one group, once."""
    held = sorted(id(member.tensor) for group in groups for member in group.members)
    if held != sorted(id(tensor) for tensor in model.parameters()) or not all(group.members for group in groups):
        raise AssertionError("a parameter is in no group, or in two")
