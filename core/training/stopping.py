"""Early stopping, as a function of the validations so far: a job that goes on after a kill decides the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from core.events import Figure, RuleData, figure, number
from core.figures import better, own_of
from core.spec import EarlyStoppingSpec


def stopped(rule: EarlyStoppingSpec | None, history: Sequence[Mapping[str, Figure]], step: int) -> RuleData | None:
    """Why a job ends with the last epoch of `history`, after `step` steps; None where it goes on.

    `history` has the validation of each epoch. It ends after `patience` epochs in a row of which none was better, by more than
    `min_delta`, than the best before them. What is not finite is never better.
    """
    if rule is None or not history:
        return None
    metric = rule.metric or own_of(history[0])
    sign = -1 if better(metric) == "max" else 1
    values = [sign * number(figures[metric]) for figures in history]
    best, at = math.inf, -1
    for epoch, value in enumerate(values):
        if value < best - rule.min_delta:
            best, at = value, epoch
    waited = len(values) - 1 - at
    if waited < rule.patience:
        return None
    row = "1 epoch" if waited == 1 else f"{waited} epochs"
    told = "was never a number" if at < 0 else f"is {sign * best:.6g}, of epoch {at + 1}"
    return RuleData(
        rule="early_stopping",
        action="stop",
        step=step,
        value=figure(sign * values[-1]),
        limit=figure(sign * best) if at >= 0 else None,
        message=f"the validation's {metric} got no better in {row}: the best {told}; the job ends here",
    )
