"""Views of a log: folded where it was rewound, the rules that have acted, the checkpoints that are kept, the best of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from core.events.kinds import (
    AdjustedData,
    CheckpointData,
    EpochData,
    EvaluationData,
    IterationsData,
    LeftOutData,
    RewoundData,
)
from core.events.values import number
from core.figures import better, own_of


class Row(NamedTuple):
    """What `fold` reads of an event."""

    seq: int
    step: int
    kind: str
    data: dict[str, Any]


def fold(rows: Iterable[Row]) -> list[Row]:
    """The log in `seq` order with `rewound` applied: each step once.

    `iterations`, `epoch`, `evaluation`, `adjusted` and `checkpoint` beyond the step that a later `rewound` names are left out; an
    `iterations` event that spans it is cut. Everything else stays.
    """
    kept: list[Row] = []
    for row in rows:
        if row.kind == RewoundData.kind:
            kept = [cut for old in kept if (cut := _before(old, row.data["to_step"])) is not None]
        kept.append(row)
    return kept


def without(rows: Iterable[Row], step: int) -> set[int]:
    """The training samples that a step went without, or will, by the `left_out` and `rewound` events of a job in `seq` order.

    Who goes on from an earlier step says anew what is left out from there.
    """
    found: set[int] = set()
    for row in rows:
        if row.kind == RewoundData.kind and row.data["to_step"] <= step:
            found.clear()
        elif row.kind == LeftOutData.kind and row.data["split"] == "training" and row.data["since"] <= step:
            found.update(row.data["samples"])
    return found


_VOIDED = {data.kind for data in (EpochData, EvaluationData, AdjustedData, CheckpointData)}


def _before(row: Row, step: int) -> Row | None:
    if row.kind == IterationsData.kind:
        left = step - row.data["first"]
        if left <= 0:
            return None
        if left < len(row.data["losses"]):
            return row._replace(step=step, data={**row.data, "losses": row.data["losses"][:left]})
        return row
    if row.kind in _VOIDED:
        return row if row.step <= step else None
    return row


class Firing(NamedTuple):
    """A rule of `training.divergence` that has acted."""

    at: int
    """How many steps were completed where training went on: those after it have felt it."""
    step: int
    """That of the loss at which it fired."""
    nth: int
    """Of those that have acted in this job, from 1."""


_ACTS = frozenset({"pause", "cut_lr", "rollback"})


def firings(rows: Iterable[Row]) -> list[Firing]:
    """Those that hold, from the `rule` and `rewound` events of a log in `seq` order.

    A `rewound` makes those beyond its step void: on the same losses they fire again. But one that went back itself stands behind
    its own `rewound`, and counts those that it made void: they have acted.
    """
    held: list[Firing] = []
    before = 0
    for row in rows:
        if row.kind == RewoundData.kind:
            before = held[-1].nth if held else 0
            held = [one for one in held if one.at <= row.data["to_step"]]
        elif row.data["action"] in _ACTS:
            last = before if row.data["action"] != "cut_lr" else held[-1].nth if held else 0
            held.append(Firing(row.step, row.data["step"], last + 1))
    return held


class Rollback(NamedTuple):
    """A rule of `training.divergence` has taken the job back to a step, and cut every lr there."""

    seq: int
    step: int
    factor: float


def rollbacks(rows: Iterable[Row]) -> list[Rollback]:
    """Those that hold, from the `adjusted`, `rule` and `rewound` events of a log in `seq` order."""
    held: list[Rollback] = []
    factor: float | None = None
    for row in rows:
        if row.kind == RewoundData.kind:
            held, factor = [one for one in held if one.step <= row.data["to_step"]], None
        elif row.kind == AdjustedData.kind:
            factor = row.data.get("factor")
        else:
            if row.data["action"] == "rollback" and factor is not None:
                held.append(Rollback(row.seq, row.step, factor))
            factor = None
    return held


def retained(checkpoints: Sequence[dict[str, Any]], keep_last: int, keep_best: int, metric: str | None) -> list[int]:
    """The steps of the checkpoints to keep: the last `keep_last`, and the best `keep_best` by `metric` (ties: the earlier).

    `checkpoints` are the data of the folded `checkpoint` events, oldest first; `metric` None is the task's own. The one rule of
    retention: the supervisor prunes by it, the API lists by it.
    """
    ranked = sorted(range(len(checkpoints)), key=lambda i: (*_worse(checkpoints[i]["figures"], metric), i))
    keep = {*ranked[:keep_best], *range(max(0, len(checkpoints) - keep_last), len(checkpoints))}
    return [checkpoints[i]["step"] for i in sorted(keep)]


def best(checkpoints: Sequence[dict[str, Any]], metric: str | None) -> dict[str, Any] | None:
    """The best of these checkpoints by `metric`, the earlier of equals; none of which that figure is not finite."""
    known = [data for data in checkpoints if not _worse(data["figures"], metric).unknown]
    return min(known, key=lambda data: _worse(data["figures"], metric), default=None)


def validated(figures: Collection[str]) -> bool:
    """Whether a checkpoint's figures are of a validation: in the middle of an epoch, after a pause, it has only `mean_loss`."""
    return any(name != "mean_loss" for name in figures)


class _Rank(NamedTuple):
    """A sort key, lower is better."""

    unknown: bool
    """The figure is missing, or not finite."""
    unvalidated: bool
    value: float


def _worse(figures: dict[str, Any], metric: str | None) -> _Rank:
    """What was not validated is worse than all that was, and goes by its mean loss."""
    metric = metric or own_of(figures)
    validated = metric in figures
    value = number(figures.get(metric if validated else "mean_loss", math.inf))
    if not math.isfinite(value):
        return _Rank(True, not validated, math.inf)
    return _Rank(False, not validated, -value if validated and better(metric) == "max" else value)
