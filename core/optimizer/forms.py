"""Schedules as functions of their own time: the closed forms behind the names of torch's schedulers. Imports no torch.

Each is torch's own closed form, or where torch has none its rule. Where torch goes from one lr to the next by a product instead,
the two differ by rounding alone. The formulas' source:
https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from math import ceil, cos, floor, inf, pi
from typing import Any, NamedTuple

PLATEAU = "ReduceLROnPlateau"


class Form(NamedTuple):
    """A schedule after its warmup."""

    lr: Callable[[float, int], float]
    """Of (the base, the time)."""
    bends: Callable[[int], Sequence[int]] = lambda _end: ()
    """Times at which it jumps, or bends, up to the one given and perhaps beyond; ascending."""
    tops: Callable[[int], Iterable[int]] = lambda _time: ()
    """Times after the one given at which it may be higher than before and after; the first of equals will do."""
    momentum: Callable[[int], float] | None = None


def _scaled(factor: Callable[[int], float], low: float = 0.0, **more: Any) -> Form:
    """A share of the base, above `low`."""
    return Form(lambda base, time: low + (base - low) * factor(time), **more)


def _constant_lr(factor: float, total_iters: int) -> Form:
    return _scaled(lambda time: factor if time < total_iters else 1.0, bends=lambda _: (total_iters,))


def _linear(start_factor: float, end_factor: float, total_iters: int) -> Form:
    return _scaled(
        lambda time: start_factor + (end_factor - start_factor) * min(total_iters, time) / total_iters,
        bends=lambda _: (total_iters,),
    )


def _exponential(gamma: float) -> Form:
    return _scaled(lambda time: float(gamma) ** time)


def _step(step_size: int, gamma: float) -> Form:
    return _scaled(lambda time: float(gamma) ** (time // step_size), bends=lambda end: range(step_size, end + 1, step_size))


def _multi_step(milestones: Sequence[int], gamma: float) -> Form:
    ordered = sorted(milestones)
    return _scaled(lambda time: float(gamma) ** bisect_right(ordered, time), bends=lambda _: ordered)


def _polynomial(total_iters: int, power: float) -> Form:
    return _scaled(lambda time: (1 - min(total_iters, time) / total_iters) ** power, bends=lambda _: (total_iters,))


def _cosine(T_max: int, eta_min: float) -> Form:  # noqa: N803 - torch's name
    return _scaled(
        lambda time: (1 + cos(pi * time / T_max)) / 2,
        eta_min,
        bends=lambda end: range(T_max, end + 1, T_max),
        tops=lambda time: ((time // (2 * T_max) + 1) * 2 * T_max,),
    )


def _warm_restarts(T_0: int, T_mult: int, eta_min: float) -> Form:  # noqa: N803 - torch's names
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
) -> Form:  # fmt: skip
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
    return Form(
        lambda _base, time: between(lows, time),
        bends=lambda _: corners,
        tops=lambda _: (floor(warm), ceil(warm)),
        momentum=(lambda time: between(highs, time)) if cycle_momentum else None,
    )


def _plateau(
    *, past: Sequence[float], mode: str, factor: float, patience: int, threshold: float, threshold_mode: str, cooldown: int,
    min_lr: float, eps: float,
) -> Form:  # fmt: skip
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

    return Form(lr)


FORMS: dict[str, Callable[..., Form]] = {
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
