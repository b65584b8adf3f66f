"""Ours in process: `core.training.job.fit`, each Iteration taken as it is yielded."""

from pathlib import Path

import sklearn.datasets  # noqa: F401 - else the job does so when it opens the digits, and imports do not count
from contenders.turns import Turns, contend
from contenders.workloads import BATCH, places

from core.events import Iteration
from core.training.job import fit


def train(turns: Turns) -> None:
    """With its validation and its checkpoint after each epoch."""
    events = fit(turns.workload.spec(turns.task.epochs), places(turns.task.inputs), Path("checkpoints"))
    next(events)  # it comes once the images are decoded and the model is built; no feature is made yet
    turns.begin(-(-turns.task.samples // BATCH))
    for event in events:
        if isinstance(event, Iteration):
            turns.iteration()


if __name__ == "__main__":
    contend(train)
