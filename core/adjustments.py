"""Changes to a parameter group while its job trains: what may change, who has asked for it, and when it is due. Imports no torch.

A change takes effect between two steps. Its `step` counts the optimizer steps completed before it: the optimizer's step of that
number, from 0, is the first with the new values.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from core.errors import Fault, SpecError, did_you_mean, pointer_of
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

    With a `factor` lr is multiplied with it, in the rest of its schedule too; `changes` says what it is then.
    """

    group: str
    changes: dict[str, Any]
    step: int | None = None
    by: str = "code"
    id: int | None = None
    factor: float | None = None


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
            self._waiting[:0] = [one for one in later if one.by != RULES]
        return list(self.done)

    def did(self, adjustment: Adjustment) -> None:
        """It was done, after all those before, at its step."""
        self.done.append(adjustment)

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
