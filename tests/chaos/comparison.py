"""What is left of a job, against what is left of one that nobody disturbed."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session
from stacks import Stack

from core.events import EndData, EpochData, IterationsData
from store import events


@dataclass(frozen=True)
class Left:
    """The folded losses, (step, loss) each; how the job ended, to the bit; what is wrong with its log as such."""

    losses: list[tuple[int, float]]
    end: list[Any]
    torn: int


def left_of(stack: Stack, job: int) -> Left:
    """Of an ended job: its end is the state, the epochs' figures, the last weights, optimizer and generators."""

    def read(session: Session) -> tuple[Any, ...]:
        kinds = {IterationsData.kind, EpochData.kind}
        log = events.read(session, job, limit=1_000_000)
        return events.folded(session, job, kinds), events.checkpoints(session, job), log

    rows, kept, log = stack.ask(read)
    losses = [
        (row.data["first"] + at, loss)
        for row in rows
        if row.kind == IterationsData.kind
        for at, loss in enumerate(row.data["losses"])
    ]
    epochs = [(row.step, row.data["mean_loss"], row.data["validation"]) for row in rows if row.kind == EpochData.kind]
    found = stack.job(job)
    place = stack.settings.data_dir / kept[-1]["path"] if kept else None
    files = [(place / f"{name}.safetensors").read_bytes() for name in ("model", "state")] if place else []
    torn = [event.seq for event in log] != list(range(1, len(log) + 1)) or log[-1].kind != EndData.kind
    late = sum(before.attempt > after.attempt for before, after in itertools.pairwise(log))  # the fence
    return Left(losses, [found.state, found.step, epochs, *files], torn + late)


def compare(left: Left, truth: Left) -> Counter[str]:
    """By column of the table."""
    undisturbed, seen = dict(truth.losses), Counter(step for step, _ in left.losses)
    return Counter(
        {
            "jobs": 1,
            "steps": len(undisturbed),
            "lost": len(undisturbed.keys() - seen.keys()),
            "doubled": sum(count > 1 for count in seen.values()),
            "wrong": sum(undisturbed.get(step) != loss for step, loss in left.losses) + left.torn,
            "other end": int(left.end != truth.end),
        }
    )
