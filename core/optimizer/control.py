"""Parameter groups that change while they train: other hyper-parameters, frozen or thawed, from one step to the next.

Whatever is asked for, each parameter keeps what the optimizer remembers of it, groups that have become equal are run as one, and
a schedule goes on from the new value, in proportion. The groups of a step are a function of the spec and of the changes up to
it: a job that goes on from a checkpoint has the same, bit for bit, as one that never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from core.adjustments import Adjustment, Adjustments, check
from core.errors import did_you_mean
from core.events import AdjustedData, Change, Figure
from core.optimizer.assignment import Group
from core.optimizer.freezing import freeze
from core.optimizer.groups import adjusted, regroup
from core.optimizer.schedules import hear

_NEWER = "it was to be done again at its step; a newer change of the same has taken its place"


class GroupControl:
    """The groups of a model that trains. `adjustments` may be asked for at any time, from any thread.

    The loop calls `begin` at each epoch, and `due` between steps; so does whoever calls `train_fn` alone:
    `train_fn(…, adjust=control.due)`, and `control.adjustments.adjust("head", lr=1e-4)` whenever they like.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, groups: Sequence[Group], adjustments: Adjustments | None = None
    ) -> None:
        self.groups = self._first = list(groups)
        self.adjustments = adjustments or Adjustments()
        self._model, self._optimizer = model, optimizer
        self._epoch = 0
        self._history: Sequence[Mapping[str, Figure]] = ()

    def settle(self, step: int) -> None:
        """Bring the groups from where they began to where a checkpoint of `step` left them.

        What the optimizer remembers has been loaded already.
        """
        for one in self.adjustments.settled(step):
            self._do(one, one.step or 0, again=True)
            self.adjustments.supersede(one, self._covered_by(one))

    def restart(self) -> None:
        """Bring the groups to where they began."""
        self.groups, self._epoch, self._history = self._first, 0, ()
        regroup(self._optimizer, self.groups)

    def begin(self, epoch: int, history: Sequence[Mapping[str, Figure]] = ()) -> None:
        """An epoch begins, or goes on: freeze and thaw, and tell the schedules the validation figures of those before."""
        self._epoch, self._history = epoch, history
        freeze(self._model, self.groups, epoch)
        hear(self._optimizer, history)

    def due(self, step: int) -> list[AdjustedData]:
        """Do what is due once `step` steps are completed; what was done. What cannot be done changes nothing, and says why.

        So does what was to be done again at a later step, once a newer change has taken its place.
        """
        return [told for one in self.adjustments.due(step) for told in self._tell(one, step)]

    def scale(self, factor: float, step: int, by: str) -> list[AdjustedData]:
        """Multiply the lr of every group once `step` steps are completed, and what its schedule has from there on."""
        names = [group.name for group in self.groups]
        return [told for name in names for told in self._tell(Adjustment(name, {}, step, by, factor=factor), step)]

    def _tell(self, one: Adjustment, step: int) -> list[AdjustedData]:
        told = self._do(one, step)
        if told.refused:
            return [told]
        if one.factor is not None:  # what the lr is then is as much a part of it
            one = replace(one, changes={key: change.to for key, change in told.changes.items()})
        one = self.adjustments.did(one)
        gone = self.adjustments.supersede(one, self._covered_by(one))
        return [
            told,
            *(AdjustedData(id=old.id, group=old.group, step=step, by=old.by, changes={}, refused=_NEWER) for old in gone),
        ]

    def _covered_by(self, one: Adjustment) -> Callable[[str], bool]:
        """Whether all groups of a name are among those that an adjustment means."""

        def meant(name: str) -> set[str]:
            return {group.name for group in self.groups if name in (group.name, group.of)}

        return lambda name: meant(name) <= meant(one.group)

    def _do(self, one: Adjustment, step: int, *, again: bool = False) -> AdjustedData:
        """`again`: it was done once already, in an epoch of which groups that stand at their beginning know nothing."""
        told = AdjustedData(id=one.id, group=one.group, step=step, by=one.by, changes={}, factor=one.factor)
        chosen = [group for group in self.groups if one.group in (group.name, group.of)]
        if one.factor is not None and chosen:  # each part of a group has its own lr to multiply
            chosen = [group for group in chosen if group.name == one.group]
            one = replace(one, changes=one.changes or {"lr": one.factor * self._value(chosen[0], "lr", step)})
        else:
            one = replace(one, changes=one.values)
        reason = self._misfit(one, chosen)
        after = self.groups if reason else _after(self.groups, chosen, one, step)
        reason = reason or (None if again else self._halt(after))
        if reason:
            return told.model_copy(update={"refused": reason})
        changes = {key: Change(before=self._before(chosen, key, step), to=value) for key, value in one.changes.items()}
        self.groups = after
        if one.changes.keys() - {"freeze"}:
            regroup(self._optimizer, after)
            hear(self._optimizer, self._history)
        freeze(self._model, after, self._epoch)
        return told.model_copy(update={"changes": changes})

    def _misfit(self, one: Adjustment, chosen: Sequence[Group]) -> str | None:
        if not chosen:
            return f"there is no such group.{did_you_mean(one.group, [group.name for group in self.groups])}"
        faults = check(one.changes, chosen[0].hyperparameters, type(self._optimizer).__name__)
        return "; ".join(fault.message for fault in faults) or None

    def _halt(self, after: Sequence[Group]) -> str | None:
        trains = any(member.trainable and not group.frozen_in(self._epoch) for group in after for member in group.members)
        return None if trains else "every parameter would be frozen: nothing would train"

    def _before(self, chosen: Sequence[Group], key: str, step: int) -> Any:
        """What the chosen groups have at that step, without the change: one value, or by group where they differ."""
        values = {group.name: self._value(group, key, step) for group in chosen}
        first = next(iter(values.values()))
        return first if all(value == first for value in values.values()) else values

    def _value(self, group: Group, key: str, step: int) -> Any:
        if key == "freeze":
            return group.frozen_in(self._epoch)
        held = group.hyperparameters[key]
        value = list(held) if isinstance(held, tuple) else held
        curve = next(one.get("curve") for one in self._optimizer.param_groups if group.name in one["names"])
        if curve is not None and key == "lr":
            return curve.lr(step)
        momentum = None if curve is None else curve.momentum(step)
        if momentum is None or key not in {"momentum", "betas"}:
            return value
        return momentum if key == "momentum" else [momentum, *value[1:]]


def _after(groups: Sequence[Group], chosen: Sequence[Group], one: Adjustment, step: int) -> list[Group]:
    """All groups, with the chosen ones changed from that step on."""
    values = {key: value for key, value in one.changes.items() if key != "freeze"}
    moved = {group.name: _moved(group, one, step) for group in adjusted(chosen, one.group, values)}
    return [moved.get(group.name, group) for group in groups]


def _moved(group: Group, one: Adjustment, step: int) -> Group:
    """The group with its schedule going on from the new values, and frozen or not; its hyper-parameters are the new ones."""
    curve, changes = group.curve, one.changes
    if curve is not None and one.factor is not None:
        curve = curve.scaled(step, one.factor)
    elif curve is not None and "lr" in changes:
        curve = curve.rebased(step, changes["lr"])
    momentum = changes["betas"][0] if "betas" in changes else changes.get("momentum")
    if curve is not None and momentum is not None and curve.momentum(step) is not None:
        curve = curve.holding(step, momentum)
    if "freeze" in changes:
        return replace(group, curve=curve, freeze=changes["freeze"], until_epoch=None)
    return replace(group, curve=curve)
