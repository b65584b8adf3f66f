"""What runs in the ranks of core's tests: a whole job, and what it said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.adjustments import Adjustments
from core.errors import TrainingError
from core.events import AdjustedData, CheckpointData, Data, EpochData, Iteration, LeftOutData, LogData, RewoundData
from core.places import Places
from core.spec import JobSpec, Task
from core.training.distributed import join
from core.training.evaluation import evaluate
from core.training.job import fit


class Plain(nn.Sequential):
    """Every sample by itself, no chance: norms of one sample, and a layer that nothing uses."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Flatten(),
            nn.LayerNorm(72),
            nn.Linear(72, num_classes),
        )
        self.add_module("unused", _Unused())


class _Unused(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Batched(nn.Sequential):
    """Norms over the batch. No bias before them: its gradient is nothing but rounding, which Adam would take for a direction."""

    def __init__(self, num_classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout),
            nn.Linear(72, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_classes),
        )  # fmt: skip


class Diverges(Plain):
    """Its loss is no number in the third step, on one rank of two alone."""

    steps = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        logits: torch.Tensor = super().forward(images)
        return logits * float("nan") if self.steps == 3 and join(torch.device("cpu")).rank == 1 else logits


def train(payload: dict[str, Any]) -> dict[str, Any]:
    """Run the job until its end, or until rank 0 (alone) wishes at step `halt` that it stops.

    `adjust`: what rank 0 (alone) is asked at a step, and when it is due: [[at, group, changes, step or null]]. `vanish`: files
    that it takes away after the first step.
    """
    device = torch.device(payload.get("device", "cpu"))
    if device.type == "cuda":
        device = torch.device("cuda", payload["rank"])
    ranks = join(device)
    spec, places = JobSpec.model_validate(payload["spec"]), Places.model_validate(payload["places"])
    resume = None if payload["resume"] is None else [Path(path) for path in payload["resume"]]
    told: dict[str, Any] = {key: [] for key in ("samples", "epochs", "saved", "adjusted", "left_out", "log")}
    told |= {"losses": {}, "error": None, "rewound": None}
    step, halt, asked = 0, payload["halt"], Adjustments()

    def halts() -> bool:
        return ranks.rank == 0 and halt is not None and step >= halt

    job = fit(
        spec, places, Path(payload["directory"]), device=device, ranks=ranks, resume=resume, halts=halts, adjustments=asked
    )  # fmt: skip
    try:
        with closing(job):
            for item in job:
                _tell(told, item)
                if isinstance(item, Iteration):
                    step = item.step + 1
                    for gone in payload["vanish"] if ranks.rank == 0 and step == 1 else ():
                        Path(gone).unlink()
                    for _, group, changes, due in [one for one in payload["adjust"] if ranks.rank == 0 and one[0] == step]:
                        asked.adjust(group, at_step=due, **changes)
                elif isinstance(item[1], CheckpointData) and halt is not None and ranks.first(halts):
                    break
    except TrainingError as error:
        told["error"] = str(error)
    return told


def validate(payload: dict[str, Any]) -> dict[str, Any]:
    """What validations of each task find on made-up data, in batches of several sizes: one of them, and two, for three ranks."""
    ranks = join(torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    outputs, numbers = torch.randn(53, 12, generator=draw), torch.randn(53, 12, generator=draw)
    cases: dict[Task, tuple[nn.Module, torch.Tensor]] = {
        "multiclass": (nn.CrossEntropyLoss(), torch.randint(12, (53,), generator=draw)),
        "multilabel": (nn.BCEWithLogitsLoss(), (numbers > 1.5).float()),
        "regression": (nn.MSELoss(), numbers),
    }
    found = {}
    for task, (loss, targets) in cases.items():
        for size in payload["sizes"]:
            bounds = [(first, min(first + size, 53)) for first in range(0, 53, size)]
            loader = Given(list(zip(outputs.split(size), targets.split(size), strict=True)), bounds)
            told = evaluate(nn.Identity(), loader, loss, ranks, task=task, classes=12)
            event = told.event(0, range(1000), str)
            found[f"{task} {size}"] = {"figures": told.figures, **event.model_dump(mode="json")}
    return found


class Given:
    """These batches, as a loader has them."""

    may_lose = False

    def __init__(self, given: list[tuple[torch.Tensor, torch.Tensor]], bounds: list[tuple[int, int]]) -> None:
        self._given, self._bounds = given, bounds

    def batches(self, _epoch: int, start: int = 0, *, step: int = 1) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(self._given[start::step])

    def sizes(self, epoch: int = 0) -> list[int]:  # noqa: ARG002 - as a loader has it
        return [last - first for first, last in self._bounds]


def _tell(told: dict[str, Any], item: Iteration | tuple[int, Data]) -> None:
    """Add an event to the story."""
    if isinstance(item, Iteration):
        told["losses"][str(item.step)] = item.loss
        told["samples"].append(item.samples)
    elif isinstance(item[1], LeftOutData):
        told["left_out"].append([item[0], item[1].split, item[1].since, item[1].samples])
    elif isinstance(item[1], LogData):
        told["log"].append(item[1].message)
    elif isinstance(item[1], EpochData):
        told["epochs"].append([item[1].mean_loss, item[1].validation])
    elif isinstance(item[1], AdjustedData):
        told["adjusted"].append([item[0], item[1].group, sorted(item[1].changes)])
    elif isinstance(item[1], RewoundData):
        told["rewound"] = item[0]
    elif isinstance(item[1], CheckpointData):
        told["saved"].append(item[0])
