"""Divergence: what the rules of a job decide, loss by loss. Imports no torch.

A decision is a function of the losses in their order, those of the validations among them, and of nothing else; not of when they
come off the device. So all ranks decide the same, and so does a job that was killed and goes on.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from core.errors import DivergedError, NonFiniteLossError
from core.events import Figure, Firing, Iteration, RuleData, figure
from core.spec import DivergenceSpec, SpikeSpec


class HaltedError(Exception):
    """A rule wants a person to look: the job is to pause, at the step that its last `rewound` named."""


@dataclass(frozen=True)
class Trouble:
    """A rule that has fired."""

    rule: Literal["nan", "inf", "spike"]
    action: Literal["stop", "pause", "cut_lr", "rollback", "none"]
    first: int
    """The step of the first loss that was amiss: the weights that it was computed with are under suspicion."""
    step: int
    """That of the loss at which it fired; of a validation's, as many as were completed."""
    value: Figure
    limit: float | None
    message: str
    at: int = 0
    """Of `cut_lr`: how many steps are completed when it is done."""

    def told(self, done: str = "") -> RuleData:
        """The event, with what was done."""
        message = f"{self.message}: {done}" if done else self.message
        return RuleData(
            rule=self.rule, action=self.action, step=self.step, value=self.value, limit=self.limit, message=message
        )  # fmt: skip

    def missed(self, why: str) -> RuleData:
        """The event of a cut that was decided, and is not made."""
        return replace(self, action="none").told(f"no lr was cut, as {why}")

    def error(self) -> DivergedError:
        """As the failure that it is where nothing is done about it."""
        return (DivergedError if self.rule == "spike" else NonFiniteLossError)(self.message)


@dataclass(frozen=True)
class Watched:
    """What the rules remember of the losses so far: the part of it that a checkpoint holds."""

    recent: tuple[float, ...] = ()
    """The newest that were no spikes, oldest first."""
    high: int = 0
    """How many of the last ones were spikes, in a row."""
    cut: Trouble | None = None
    """A cut that is decided, and whose step has not come."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Watched:
        """From JSON."""
        cut = values.get("cut")
        return cls(tuple(values.get("recent", ())), values.get("high", 0), Trouble(**cut) if cut else None)


class Watch:
    """Hears every loss of a job in order.

    `trouble` is what ends the training where it stands, to stop, pause or go back. `fired` are those rules that have acted and
    that hold, as `core.events.firings` has them of the log. A loss is heard at most `lag` steps late; a cut is due that many
    steps later, however early it was heard.
    """

    def __init__(self, rules: DivergenceSpec = DivergenceSpec(), lag: int = 0, fired: Iterable[Firing] = ()) -> None:  # noqa: B008 - it is frozen
        self.rules = rules
        self.heard = 0
        """Steps whose loss was heard."""
        self._lag = lag
        self._fired: list[Firing] = []
        self.restart(Watched(), 0)
        self._fired = list(fired)

    def restart(self, state: Watched, step: int) -> None:
        """Stand where a checkpoint of `step` was. A cut that it has ahead may have been made there already."""
        self._fired = [one for one in self._fired if one.at <= step]
        made = state.cut is not None and any((one.at, one.step) == (state.cut.at, state.cut.step) for one in self._fired)
        self._cut = None if made else state.cut
        self._recent = deque(state.recent)
        self._sorted = sorted(state.recent)
        self._high = state.high
        self.trouble: Trouble | None = None

    @property
    def state(self) -> Watched:
        """For a checkpoint. Every loss up to it has been heard."""
        return Watched(tuple(self._recent), self._high, self._cut)

    @property
    def used(self) -> int:
        """How often rules have acted."""
        return self._fired[-1].nth if self._fired else 0

    def hear(self, one: Iteration) -> None:
        """The next loss. What comes behind trouble says nothing."""
        self.heard = one.step + 1
        if self.trouble is not None:
            return
        if not math.isfinite(one.loss):
            self._break(one.step, one.epoch, one.loss, f"the loss became {one.loss} at step {one.step}")
        elif self.rules.spike is not None:
            self._compare(one, self.rules.spike)

    def validated(self, step: int, epoch: int, loss: float) -> None:
        """The validation's loss of an epoch, once every loss of it was heard, and `step` steps are completed.

        It is the first that is computed with the weights which the epoch's last step has left. Without dropout, and maybe of the
        running average, it is compared with no other: it can be no spike.
        """
        if not math.isfinite(loss):
            self._break(step, epoch, loss, f"the validation's loss became {loss} after step {step - 1}")

    def due(self, step: int) -> Trouble | None:
        """The cut that is to be made once `step` steps are completed."""
        if self._cut is None or self._cut.at > step:
            return None
        cut, self._cut = self._cut, None
        return cut

    def missed(self) -> Trouble | None:
        """The cut that is decided and not made, where training does not get to its step."""
        cut, self._cut = self._cut, None
        return cut

    def acted(self, trouble: Trouble, at: int, nth: int) -> None:
        """It was done, the `nth` time that a rule has acted; training goes on from step `at`."""
        self._fired.append(Firing(at, trouble.step, nth))

    def _compare(self, one: Iteration, rule: SpikeSpec) -> None:
        limit = self._limit(rule)
        if limit is None or one.loss <= limit:
            self._high = 0
            self._remember(one.loss, rule.window)
            return
        self._high += 1
        if self._high >= rule.patience:
            row = f", for {self._high} steps in a row" if self._high > 1 else ""
            told = f"the loss was {one.loss:.4g} at step {one.step}, above {rule.factor:g} times its running median{row}"
            first = one.step - self._high + 1
            self._fire(one.step, one.epoch, one.loss, "spike", rule.action, first=first, message=told, limit=limit)

    def _break(self, step: int, epoch: int, loss: float, message: str) -> None:
        rule: Literal["nan", "inf"] = "nan" if math.isnan(loss) else "inf"
        self._fire(step, epoch, loss, rule, self.rules.non_finite, first=step, message=message)

    def _limit(self, rule: SpikeSpec) -> float | None:
        """None while there are too few to compare with, or where they are not above 0: then no factor says what is far."""
        size = len(self._sorted)
        if 2 * size < rule.window:
            return None
        median = (self._sorted[(size - 1) // 2] + self._sorted[size // 2]) / 2
        return rule.factor * median if median > 0 else None

    def _remember(self, loss: float, window: int) -> None:
        self._recent.append(loss)
        insort(self._sorted, loss)
        if len(self._recent) > window:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    def _fire(
        self, step: int, epoch: int, loss: float, rule: Literal["nan", "inf", "spike"],
        action: Literal["stop", "pause", "cut_lr", "rollback"], *, first: int, message: str, limit: float | None = None,
    ) -> None:  # fmt: skip
        message += f", in epoch {epoch + 1}"
        if action != "stop" and self.used >= self.rules.times:
            message += f"; rules have acted {self.used} times before, and training.divergence.times allows no more"
            action = "stop"
        trouble = Trouble(rule, action, first, step, figure(loss), limit, message, at=step + 1 + self._lag)
        if action == "cut_lr":  # what is a spike is told by the losses that come with the new lr
            self._recent, self._sorted, self._high, self._cut = deque(), [], 0, trouble
        else:
            self.trouble = trouble
