"""Changes to a parameter group while its job trains: what may change, who has asked for it, and when it is due. Imports no torch.

A change takes effect between two steps. Its `step` counts the optimizer steps completed before it: the optimizer's step of that
number, from 0, is the first with the new values.

A job that goes back does again, at their steps, the changes that are beyond the checkpoint. Where a rule took it back, and cut
every lr there, it cuts what they ask of lr as well; and a newer change, done before they come again, takes the place of what it
changes too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from core.errors import Fault, SpecError, did_you_mean, pointer_of
from core.events import AdjustedData, RewoundData, Row, RuleData, fold, rollbacks
from core.spec import Hyperparameters, faults_of

RULES = "divergence"
"""Who has asked for it: the rules of `training.divergence`. On the same losses they ask again."""


class GroupPatch(Hyperparameters):
    """What of a parameter group may change while its job trains; what is left out, or null, stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    freeze: Annotated[bool, Field(strict=True)] | None = Field(
        default=None, description="true: do not train it from here on; false: train it."
    )

    @property
    def changes(self) -> dict[str, Any]:
        """What is asked for."""
        return self.model_dump(exclude_none=True, include=set(GroupPatch.model_fields))


class TimedPatch(GroupPatch):
    """The same, and when."""

    at_step: Annotated[int, Field(strict=True, ge=0, lt=2**63)] | None = Field(
        default=None, description="How many steps are completed when it takes effect; by default at the next step."
    )


@dataclass(frozen=True)
class Adjustment:
    """Other values for one group, from a step on; `step` is None: as soon as may be. `by` says who asked for it.

    With a `factor` lr is multiplied with it, in the rest of its schedule too; `changes` says what it is then. `order` tells which
    was done first, however often it was done again since; None: it was not done yet. `cuts` are the rollbacks since then, as the
    step that training went back to and the factor.
    """

    group: str
    changes: dict[str, Any]
    step: int | None = None
    by: str = "code"
    id: int | None = None
    factor: float | None = None
    order: int | None = field(default=None, compare=False)
    cuts: Sequence[tuple[int, float]] = field(default=(), compare=False)

    @property
    def values(self) -> dict[str, Any]:
        """What it changes to: `changes`, with lr as it was cut."""
        if not self.cuts or "lr" not in self.changes:
            return self.changes
        return {**self.changes, "lr": reduce(lambda lr, cut: lr * cut[1], self.cuts, self.changes["lr"])}


def patch_of(values: Mapping[str, Any]) -> TimedPatch:
    """These values, checked. Raises SpecError with every fault."""
    try:
        patch = TimedPatch.model_validate(values)
    except ValidationError as error:
        raise SpecError(*faults_of(error, TimedPatch)) from None
    if not patch.changes:
        raise SpecError.at("", f"nothing changes; send one or more of {', '.join(GroupPatch.model_fields)}")
    return patch


def check(changes: Mapping[str, Any], hyperparameters: Mapping[str, Any], optimizer: str) -> list[Fault]:
    """What a group of this optimizer, which now has these hyper-parameters, cannot take of `changes`."""
    taken = [key for key in GroupPatch.model_fields if key in hyperparameters or key == "freeze"]
    faults = [
        Fault(pointer_of(key), f"a group of {optimizer} has no {key}.{did_you_mean(key, taken)}")
        for key in changes
        if key not in taken
    ]
    if hyperparameters.get("nesterov") and changes.get("momentum") == 0:
        faults.append(Fault("/momentum", "nesterov needs a momentum above 0"))
    return faults


class Told:
    """What a job's log tells of them, from its rows of these `kinds` in `seq` order."""

    kinds = frozenset({AdjustedData.kind, RewoundData.kind, RuleData.kind})

    def __init__(self, rows: Sequence[Row]) -> None:
        done = [row for row in rows if row.kind == AdjustedData.kind]
        self._folded = [row for row in fold(rows) if row.kind == AdjustedData.kind]
        self._done = [row for row in done if not row.data["refused"]]
        self._cuts = rollbacks(rows)
        self._first: dict[int, Row] = {}
        for row in self._done:
            if row.data["id"] is not None:
                self._first.setdefault(row.data["id"], row)

    def history(self) -> list[Adjustment]:
        """What an attempt has to do again: what holds, and what is void, but for the cuts of rules: they are decided anew.

        By step, and for one step in the order in which they were done.
        """
        valid = [self._of(row) for row in self._folded if not row.data["refused"]]
        return sorted([*valid, *self.void()], key=lambda one: one.step or 0)

    def void(self) -> list[Adjustment]:
        """What people have asked for, was done, and is void, oldest first: it is done again at its step."""
        valid = {row.data["id"] for row in self._folded}  # refused ones too: they come no more
        last = {row.data["id"]: row for row in self._done if row.data["id"] is not None}
        return sorted((self._of(row) for number, row in last.items() if number not in valid), key=lambda one: one.id or 0)

    def _of(self, row: Row) -> Adjustment:
        """As it was first done, and what became of it: a rollback cuts anew what it has made void."""
        data, first = row.data, self._first.get(row.data["id"], row)
        changes = {key: change["to"] for key, change in first.data["changes"].items()}
        cuts = [(cut.step, cut.factor) for cut in self._cuts if cut.seq > first.seq and cut.step < data["step"]]
        return Adjustment(
            data["group"], changes, data["step"], data["by"], data["id"], data.get("factor"), first.seq,
            cuts if data["by"] != RULES else (),
        )  # fmt: skip


class Adjustments:
    """What is asked of the groups of a job: from any thread, for the loop to do between its steps.

    `done` are those that the job's log tells of, when it goes on from a checkpoint: each is done again at its step. At one step
    they were done in the order in which they are given.
    """

    def __init__(self, done: Iterable[Adjustment] = ()) -> None:
        self._lock = threading.Lock()
        self.done = sorted(done, key=lambda one: one.step or 0)
        self._waiting: list[Adjustment] = []

    def adjust(self, group: str, *, at_step: int | None = None, by: str = "code", **changes: Any) -> None:
        """Ask for other values of a group: `adjust("head", lr=1e-4)`. Raises SpecError where they can fit no group."""
        self.ask(Adjustment(group, patch_of(changes).changes, at_step, by))

    def ask(self, adjustment: Adjustment) -> None:
        """Ask for it."""
        with self._lock:
            self._waiting.append(adjustment)

    def settled(self, step: int) -> list[Adjustment]:
        """Those that a checkpoint of `step` has behind it, in order.

        The later ones become due at their steps, but for those of the rules, which decide anew.
        """
        later = [one for one in self.done if (one.step or 0) > step]
        self.done = self.done[: len(self.done) - len(later)]
        with self._lock:
            again = [*(one for one in later if one.by != RULES), *self._waiting]
            self._waiting = [replace(one, cuts=[cut for cut in one.cuts if cut[0] <= step]) if one.cuts else one for one in again]
        return list(self.done)

    def did(self, adjustment: Adjustment) -> Adjustment:
        """It was done, after all those before, at its step; as it is from here on, with its `order`."""
        if adjustment.order is None:
            newest = max((one.order or 0 for one in (*self.done, *self._waiting)), default=0)
            adjustment = replace(adjustment, order=newest + 1)
        self.done.append(adjustment)
        return adjustment

    def cut(self, step: int, factor: float) -> None:
        """A rule has taken the job back to `step` and cut every lr: so it is with those that are to be done again."""
        with self._lock:
            self._waiting = [
                replace(one, cuts=[*one.cuts, (step, factor)]) if one.order is not None else one for one in self._waiting
            ]

    def supersede(self, newer: Adjustment, covers: Callable[[str], bool]) -> list[Adjustment]:
        """Once `newer` was done: what waits to be done again, and was first done before it, has lost the same keys.

        `covers` says of a group's name whether `newer` meant all of that. Those of which nothing is left, which wait no more.
        """
        if newer.order is None or newer.by == RULES:
            return []
        kept, gone = [], []
        with self._lock:
            for one in self._waiting:
                older = one.order is not None and one.order < newer.order and covers(one.group)
                left = {key: value for key, value in one.changes.items() if not older or key not in newer.changes}
                if left:
                    kept.append(replace(one, changes=left))
                else:
                    gone.append(one)
            self._waiting = kept
        return gone

    @property
    def waits(self) -> bool:
        """Whether something was asked for and not taken yet."""
        return bool(self._waiting)

    def take(self) -> list[Adjustment]:
        """Take all, due or not."""
        with self._lock:
            taken, self._waiting = self._waiting, []
        return taken

    def due(self, step: int) -> list[Adjustment]:
        """Take those that are due once `step` steps are completed, in the order in which they were asked for."""
        if not self._waiting:
            return []
        with self._lock:
            due = [one for one in self._waiting if one.step is None or one.step <= step]
            self._waiting = [one for one in self._waiting if one.step is not None and one.step > step]
        return [replace(one, step=step) for one in sorted(due, key=lambda one: one.id or 0)]
