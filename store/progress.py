"""Where a job stands, as columns of its row: the fold of its log, kept as the log grows so that lists need not read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from core.events import CheckpointData, EpochData, IterationsData, RewoundData, Row

KINDS = frozenset({IterationsData.kind, EpochData.kind, CheckpointData.kind, RewoundData.kind})
"""The kinds of event that say something of it."""


@dataclass(frozen=True)
class Progress:
    """`step` and `epoch` count what is completed; `latest` and `best` hold figures."""

    step: int = 0
    epoch: int = 0
    latest: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] | None = None

    def after(self, row: Row) -> Progress:
        """The progress once `row` has happened too."""
        data = row.data
        match row.kind:
            case IterationsData.kind:
                return replace(self, step=row.step, latest={**self.latest, "loss": data["losses"][-1], "lr": data["lr"]})
            case EpochData.kind:
                figures = {key: data[key] for key in ("mean_loss", "validation", "samples_per_second")}
                return replace(self, step=row.step, epoch=data["epoch"] + 1, latest={**self.latest, **figures})
            case CheckpointData.kind if data["best"]:
                return replace(self, best={"step": data["step"], "epoch": data["epoch"], **data["figures"]})
            case RewoundData.kind:
                return replace(self, step=data["to_step"])
            case _:
                return self

    def after_all(self, rows: Iterable[Row]) -> Progress:
        """The progress once all of these have happened; a `rewound` among them must have been folded."""
        progress = self
        for row in rows:
            progress = progress.after(row)
        return progress
