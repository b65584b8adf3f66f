"""lr as a pure function of the step, so it can be read at any step and nothing of it is ever saved. Imports no torch.

A curve is a warmup, a schedule of `core.optimizer.forms` after it, and what was set while the job runs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import ceil

from core.optimizer.forms import FORMS, PLATEAU, Form
from core.spec import ScheduleSpec

_MARKS = 60
_SAMPLES = 100


@dataclass(frozen=True)
class Curve:
    """The lr of a parameter group at each step of a job, and its momentum where that is scheduled.

    A step counts from 0: `lr(step)` is what the optimizer's step of that number uses. In the first `warmup_steps` it rises
    linearly to where the schedule begins; the schedule's own time starts after them, and counts steps, or ends of epochs.
    """

    base: float
    """The group's lr. OneCycleLR goes by its max_lr instead."""
    schedule: ScheduleSpec
    """With everything filled in, as `core.optimizer.schedules.assign` does."""
    per_epoch: int
    """Steps of an epoch."""
    past: tuple[float, ...] = ()
    """For ReduceLROnPlateau: the validation figures of the job's epochs so far. It hears those from the end of the warmup on."""
    changes: tuple[tuple[int, float, bool], ...] = ()
    """What was set while the job runs, ascending: (step, lr, False), or (step, factor, True) where lr was multiplied."""
    held: tuple[tuple[int, float], ...] = ()
    """Of momentum, or of the first of betas, as (step, value)."""

    def lr(self, step: int) -> float:
        """At the optimizer's step of that number."""
        if not self.changes:
            return self._planned(step)
        since, value, factor = 0, None, 1.0
        for at, number, multiplies in self.changes:
            if at <= step:
                since, value, factor = (since, value, factor * number) if multiplies else (at, number, 1.0)
        if value is None:
            return factor * self._planned(step)
        highest = max(self._planned(at) for at in (since, step, *self._tops(since, step)))
        return factor * (value * (self._planned(step) / highest) if highest else value)

    def momentum(self, step: int) -> float | None:
        """At that step; None where the schedule leaves it alone."""
        form = self._form.momentum
        _, value = _last(self.held, step) if self.held else (0, None)
        return value if value is not None or form is None else form(self.time(step))

    def rebased(self, step: int, lr: float) -> Curve:
        """The same curve, but with that lr at `step`, and from there on in proportion: the new value is the highest to come.

        What falls keeps its shape, floors such as `eta_min` included. What would rise stays at the new value until it falls: the
        rest of a warmup or of OneCycleLR's first phase; a restart goes back to the new value. Earlier steps are as they were.
        """
        return replace(self, changes=(*(each for each in self.changes if each[0] < step), (step, lr, False)))

    def scaled(self, step: int, factor: float) -> Curve:
        """The same curve, but multiplied from `step` on: a warmup still rises, to a lower top."""
        return replace(self, changes=(*(each for each in self.changes if each[0] <= step), (step, factor, True)))

    def holding(self, step: int, momentum: float) -> Curve:
        """The same curve, but from `step` on with that momentum: a cycle of it ends there."""
        return replace(self, held=(*(each for each in self.held if each[0] < step), (step, momentum)))

    def time(self, step: int) -> int:
        """What the schedule has counted at that step, once the warmup is over: steps, or epochs that have ended."""
        first = self._begin // self._unit
        return max(0, step // self._unit - first)

    def first_step(self, time: int) -> int:
        """The step at which `time`, 1 or more, is reached."""
        return (self._begin // self._unit + time) * self._unit

    def points(self, total: int) -> list[tuple[int, float]]:
        """The curve over the `total` steps of a job as (step, lr), at most some 300, from the first step to the last.

        Between two of them it is a line. What is piecewise linear has its corners, and a jump both its sides; what is smooth, or
        has more than 60 jumps, is sampled evenly.
        """
        return _corners([(step, self.lr(step)) for step in self._marks(total)])

    def momentum_points(self, total: int) -> list[tuple[int, float]]:
        """The same of momentum; empty where the schedule leaves it alone."""
        found = [(step, self.momentum(step)) for step in self._marks(total)]
        return _corners([(step, value) for step, value in found if value is not None])

    @cached_property
    def _form(self) -> Form:
        name = self.schedule.name
        if name is None:
            return Form(lambda base, _time: base)
        heard = {"past": self.past[self.schedule.warmup_steps // self.per_epoch :]} if name == PLATEAU else {}
        return FORMS[name](**self.schedule.keywords, **heard)

    @cached_property
    def _begin(self) -> int:
        """The step at which the warmup is over."""
        return self.schedule.warmup_steps

    @cached_property
    def _unit(self) -> int:
        """Steps to a unit of the schedule's time."""
        return self.per_epoch if self.schedule.per == "epoch" else 1

    def _planned(self, step: int) -> float:
        """Without what was set while the job ran."""
        value = self._form.lr(self.base, self.time(step))
        if step >= self._begin:
            return value
        start = self.schedule.warmup_start
        return (start + (1 - start) * (step / self._begin)) * value

    def _tops(self, since: int, until: int) -> list[int]:
        """Steps between the two that may be higher than either."""
        tops = [self._begin, *map(self.first_step, self._form.tops(self.time(since)))]
        return [step for step in tops if since < step < until]

    def _marks(self, total: int) -> list[int]:
        """Steps that tell the whole, ascending."""
        warmup, last = self._begin, total - 1
        end = self.time(last)
        jumps = _some(self._form.bends(end), end)
        if self._unit > 1:
            jumps += _some(range(1, end + 1), end)
        firsts = [self.first_step(time) for time in jumps]
        smooth = range(warmup, total, max(1, (total - warmup) // _SAMPLES)) if self._unit == 1 else ()
        marks = {0, warmup - 1, warmup, last, *smooth, *firsts, *(step - 1 for step in firsts)}
        return sorted(step for step in marks if 0 <= step <= last)


def _last(changes: Sequence[tuple[int, float]], step: int) -> tuple[int, float | None]:
    """The newest of `changes` up to that step."""
    for since, value in reversed(changes):
        if since <= step:
            return since, value
    return 0, None


def _some(times: Sequence[int], end: int) -> list[int]:
    """Those of the ascending `times` that are above 0 and up to `end`; of too many, evenly chosen ones."""
    first, last = bisect_right(times, 0), bisect_right(times, end)
    return [times[index] for index in range(first, last, max(1, ceil((last - first) / _MARKS)))]


def _corners(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Without those that lie on the line from the one before to the one after."""
    if len(points) < 3:
        return list(points)
    tolerance = 1e-12 * max(abs(value) for _, value in points)
    kept = [points[0]]
    for (step, value), (after, following) in pairwise(points[1:]):
        before, preceding = kept[-1]
        line = preceding + (following - preceding) * (step - before) / (after - before)
        if abs(line - value) > tolerance:
            kept.append((step, value))
    return [*kept, points[-1]]
