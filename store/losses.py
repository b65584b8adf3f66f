"""A job's losses as arrays, and as few buckets of a curve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from core.events import Figure, RewoundData, figure

MOST_POINTS = 5000
"""More buckets than any screen has columns."""


@dataclass(frozen=True)
class Losses:
    """Each optimizer step once, in order. The arrays are of one length."""

    steps: npt.NDArray[np.int64]
    """From 0 over the whole job."""
    epochs: npt.NDArray[np.int64]
    """From 0."""
    values: npt.NDArray[np.float64]
    """The losses; NaN and infinities as such."""

    @classmethod
    def of(cls, log: Iterable[tuple[str, str]]) -> Losses:
        """From the kind and raw data of a log's `iterations` and `rewound` events, in order.

        The same fold as `core.events.fold`, over arrays: a rewind voids every earlier loss at its step or beyond.
        """
        values: list[Figure] = []
        chunks: list[tuple[int, int, int]] = []
        rewinds: list[tuple[int, int]] = []
        for kind, text in log:
            data = orjson.loads(text)
            if kind == RewoundData.kind:
                rewinds.append((len(values), data["to_step"]))
            else:
                chunks.append((data["first"] - len(values), data["epoch"], len(data["losses"])))
                values += data["losses"]
        shifts, epochs, sizes = np.array(chunks, np.int64).reshape(-1, 3).T
        steps = np.arange(len(values)) + np.repeat(shifts, sizes)
        valid = np.ones(len(values), np.bool_)
        for end, step in rewinds:
            valid[:end] &= steps[:end] < step
        # numpy reads "nan" and "inf" as what they say
        return cls(steps[valid], np.repeat(epochs, sizes)[valid], np.array(values, np.float64)[valid])

    def __len__(self) -> int:
        return len(self.values)

    def at(self, step: int) -> Figure | None:
        """The loss of a step, None where it has none yet."""
        found = self.values[self.steps == step]
        return figure(found[0].item()) if len(found) else None

    def figures(self) -> list[Figure]:
        """The losses as JSON can carry them."""
        values: list[Figure] = self.values.tolist()
        for index in np.flatnonzero(~np.isfinite(self.values)).tolist():
            values[index] = figure(self.values[index].item())
        return values


def buckets(losses: Losses, points: int) -> list[dict[str, Any]]:
    """The curve as at most `points` buckets (1 to 5000) of consecutive steps, sizes as equal as can be.

    `first` and `last` are steps: the first bucket begins with the first step, the last ends with the last one. `min`, `max` and
    `mean` are of the finite losses, null where there is none; `count` counts all of them and `non_finite` those left out. The
    same losses always give the same buckets. Raises ValueError for another number of points.
    """
    if not 1 <= points <= MOST_POINTS:
        raise ValueError(f"points must be from 1 to {MOST_POINTS}, not {points}")
    if not len(losses):
        return []
    total, number = len(losses), min(points, len(losses))
    starts = np.arange(number) * total // number
    ends = np.append(starts[1:], total)
    finite = np.isfinite(losses.values)
    kept = np.add.reduceat(finite, starts, dtype=np.int64)
    lowest = np.minimum.reduceat(np.where(finite, losses.values, np.inf), starts)
    highest = np.maximum.reduceat(np.where(finite, losses.values, -np.inf), starts)
    sums = np.add.reduceat(np.where(finite, losses.values, 0.0), starts)
    means = sums / np.maximum(kept, 1)
    columns = (losses.steps[starts], losses.steps[ends - 1], lowest, highest, means, ends - starts, kept)
    return [
        {
            "first": first,
            "last": last,
            "min": low if some else None,
            "max": high if some else None,
            "mean": mean if some else None,
            "count": count,
            "non_finite": count - some,
        }
        for first, last, low, high, mean, count, some in zip(*(column.tolist() for column in columns), strict=True)
    ]
