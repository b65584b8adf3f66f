"""lr as a pure function of the step: the curves behind the names of torch's schedulers. Imports no torch.

Each is torch's own closed form, or where torch has none its rule, so it can be read at any step and nothing of it is ever saved.
Where torch goes from one lr to the next by a product instead, the two differ by rounding alone. The formulas' source:
https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from math import ceil, cos, floor, inf, pi
from typing import Any, NamedTuple

from core.spec import ScheduleSpec

PLATEAU = "ReduceLROnPlateau"
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
    def _form(self) -> _Form:
        name = self.schedule.name
        if name is None:
            return _Form(lambda base, _time: base)
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


class _Form(NamedTuple):
    """A schedule after its warmup."""

    lr: Callable[[float, int], float]
    """Of (the base, the time)."""
    bends: Callable[[int], Sequence[int]] = lambda _end: ()
    """Times at which it jumps, or bends, up to the one given and perhaps beyond; ascending."""
    tops: Callable[[int], Iterable[int]] = lambda _time: ()
    """Times after the one given at which it may be higher than before and after; the first of equals will do."""
    momentum: Callable[[int], float] | None = None


def _scaled(factor: Callable[[int], float], low: float = 0.0, **more: Any) -> _Form:
    """A share of the base, above `low`."""
    return _Form(lambda base, time: low + (base - low) * factor(time), **more)


def _constant_lr(factor: float, total_iters: int) -> _Form:
    return _scaled(lambda time: factor if time < total_iters else 1.0, bends=lambda _: (total_iters,))


def _linear(start_factor: float, end_factor: float, total_iters: int) -> _Form:
    return _scaled(
        lambda time: start_factor + (end_factor - start_factor) * min(total_iters, time) / total_iters,
        bends=lambda _: (total_iters,),
    )


def _exponential(gamma: float) -> _Form:
    return _scaled(lambda time: float(gamma) ** time)


def _step(step_size: int, gamma: float) -> _Form:
    return _scaled(lambda time: float(gamma) ** (time // step_size), bends=lambda end: range(step_size, end + 1, step_size))


def _multi_step(milestones: Sequence[int], gamma: float) -> _Form:
    ordered = sorted(milestones)
    return _scaled(lambda time: float(gamma) ** bisect_right(ordered, time), bends=lambda _: ordered)


def _polynomial(total_iters: int, power: float) -> _Form:
    return _scaled(lambda time: (1 - min(total_iters, time) / total_iters) ** power, bends=lambda _: (total_iters,))


def _cosine(T_max: int, eta_min: float) -> _Form:  # noqa: N803 - torch's name
    return _scaled(
        lambda time: (1 + cos(pi * time / T_max)) / 2,
        eta_min,
        bends=lambda end: range(T_max, end + 1, T_max),
        tops=lambda time: ((time // (2 * T_max) + 1) * 2 * T_max,),
    )


def _warm_restarts(T_0: int, T_mult: int, eta_min: float) -> _Form:  # noqa: N803 - torch's names
    def cycle(time: int) -> tuple[int, int]:
        """Its first time, and its length."""
        first, length = (time // T_0 * T_0, T_0) if T_mult == 1 else (0, T_0)
        while time >= first + length:
            first, length = first + length, length * T_mult
        return first, length

    def factor(time: int) -> float:
        first, length = cycle(time)
        return (1 + cos(pi * (time - first) / length)) / 2

    def restarts(end: int) -> Sequence[int]:
        if T_mult == 1:
            return range(T_0, end + 1, T_0)
        found = [T_0]
        while found[-1] <= end:
            found.append(sum(cycle(found[-1])))
        return found

    return _scaled(factor, eta_min, bends=restarts, tops=lambda time: (sum(cycle(time)),))


def _one_cycle(
    *, max_lr: float, total_steps: int, pct_start: float, anneal_strategy: str, cycle_momentum: bool,
    base_momentum: float, max_momentum: float, div_factor: float, final_div_factor: float, three_phase: bool,
) -> _Form:  # fmt: skip
    initial = max_lr / div_factor
    lows = (
        (initial, max_lr, initial, initial / final_div_factor) if three_phase else (initial, max_lr, initial / final_div_factor)
    )
    highs = (max_momentum, base_momentum, max_momentum, max_momentum)
    warm = pct_start * total_steps - 1
    ends = (warm, 2 * pct_start * total_steps - 2, total_steps - 1) if three_phase else (warm, total_steps - 1)

    def between(values: Sequence[float], time: int) -> float:
        index = 0
        while time > ends[index] and index < len(ends) - 1:
            index += 1
        start, low, high = (ends[index - 1] if index else 0.0), values[index], values[index + 1]
        share = (time - start) / (ends[index] - start)
        if anneal_strategy == "linear":
            return (high - low) * share + low
        return high + (low - high) / 2 * (cos(pi * share) + 1)

    corners = sorted({time for end in ends for time in (floor(end), ceil(end))})
    return _Form(
        lambda _base, time: between(lows, time),
        bends=lambda _: corners,
        tops=lambda _: (floor(warm), ceil(warm)),
        momentum=(lambda time: between(highs, time)) if cycle_momentum else None,
    )


def _plateau(
    *, past: Sequence[float], mode: str, factor: float, patience: int, threshold: float, threshold_mode: str, cooldown: int,
    min_lr: float, eps: float,
) -> _Form:  # fmt: skip
    """Torch's rule, played over the figures that are there; the time says how many of them have been heard."""

    def better(figure: float, best: float) -> bool:
        if mode == "min":
            return figure < (best * (1 - threshold) if threshold_mode == "rel" else best - threshold)
        return figure > (best * (1 + threshold) if threshold_mode == "rel" else best + threshold)

    best, bad, cooling, cut = inf if mode == "min" else -inf, 0, 0, [0]
    for figure in past:
        best, bad = (figure, 0) if better(figure, best) else (best, bad + 1)
        if cooling:
            cooling, bad = cooling - 1, 0
        cut.append(int(bad > patience))
        if cut[-1]:
            cooling, bad = cooldown, 0
    cuts = list(accumulate(cut))

    def lr(base: float, time: int) -> float:
        for _ in range(cuts[min(time, len(past))]):
            lower = max(base * factor, min_lr)
            base = lower if base - lower > eps else base
        return base

    return _Form(lr)


FORMS: dict[str, Callable[..., _Form]] = {
    "ConstantLR": _constant_lr,
    "LinearLR": _linear,
    "ExponentialLR": _exponential,
    "StepLR": _step,
    "MultiStepLR": _multi_step,
    "PolynomialLR": _polynomial,
    "CosineAnnealingLR": _cosine,
    "CosineAnnealingWarmRestarts": _warm_restarts,
    "OneCycleLR": _one_cycle,
    PLATEAU: _plateau,
}
"""By torch's names; each takes torch's keywords, all of them."""


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
