"""What happens while a job trains, kind by kind, and the envelope of the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from core.events.reports import (
    GroupsData,
    TransferData,
)
from core.events.values import Data, Figure, shortest
from core.spec.values import Task

FailureKind = Literal[
    "data", "transfer", "out_of_memory", "non_finite_loss", "diverged", "disk_full", "worker_lost", "timeout", "crashed"
]  # fmt: skip


JobState = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]


class StateData(Data):
    """The job changed state. Written by the service, never by the trainer."""

    kind = "state"
    state: JobState
    reason: str | None = None
    by: str | None = Field(default=None, description="Who did it: a worker's name, `api`, or `reaper`.")


class IterationsData(Data):
    """Consecutive optimizer steps of one epoch."""

    kind = "iterations"
    epoch: int = Field(description="From 0.")
    first: int = Field(description="The step of the first loss, from 0 over the whole job.")
    losses: list[Figure] = Field(description="One per optimizer step; the shortest decimal that restores the float32.")
    lr: dict[str, float] = Field(description="Per group, at the last of these steps.")


class EpochData(Data):
    """An epoch is done."""

    kind = "epoch"
    epoch: int
    mean_loss: Figure = Field(description="Mean of the epoch's losses, weighted by samples.")
    validation: dict[str, Figure] | None = Field(
        description=(
            "`loss`, and by the dataset's task: of classes `top1`, and where there are more than five `top5` (shares, 0 to 1); "
            "of several labels `mAP` (the mean of the classes' average precision); of numbers `mae`, `rmse` and `r2` (means over "
            "the targets)."
        )
    )
    seconds: float
    samples_per_second: float


class ClassColumns(BaseModel):
    """One number per class, or per target of a regression, in the dataset's order; null is what its task does not have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    support: list[int] | None = Field(default=None, description="Samples that have the class.")
    predicted: list[int] | None = Field(default=None, description="Samples for which it was predicted.")
    correct: list[int] | None = Field(default=None, description="Samples of which both holds.")
    average_precision: list[Figure | None] | None = Field(
        default=None, description="Of several labels; null for a class that no sample has."
    )
    mae: list[Figure] | None = Field(default=None, description="Of numbers: the mean absolute error.")
    rmse: list[Figure] | None = Field(default=None, description="Of numbers: the root of the mean squared error.")


class HardSample(BaseModel):
    """A sample of the validation with a high loss."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int = Field(description="In the validation split, from 0.")
    name: str = Field(description="Its file, or the like of `train[17]`.")
    target: list[int | Figure] = Field(description="Its class by number, its labels (the first 20), or its numbers (as many).")
    prediction: list[int | Figure]
    loss: Figure


class EvaluationData(Data):
    """The validation of an epoch in full: per class, what was taken for what, and the hardest samples."""

    kind = "evaluation"
    epoch: int
    task: Task
    samples: int
    per_class: ClassColumns
    confused: list[tuple[int, int, int]] | None = Field(
        default=None,
        description=(
            "The confusion matrix but for its diagonal, which is `correct`: `[class, prediction, samples]`, the most frequent "
            "first, those that did not happen left out, 1,000 at most. null where a sample has not one class."
        ),
    )
    confused_left_out: int = Field(default=0, description="Samples in the rarest confusions, which did not fit into `confused`.")
    hardest: list[HardSample] | None = Field(
        description="The 16 with the highest loss, the highest first; null where the loss cannot be told per sample."
    )


class Change(BaseModel):
    """A hyper-parameter before and after."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    before: Any = Field(alias="from", description="By part, where the parts of a group differed in it.")
    to: Any


class AdjustedData(Data):
    """A parameter group has other values from here on."""

    kind = "adjusted"
    id: int | None = Field(
        default=None,
        description="Of the adjustment that was asked for. One that a `rewound` makes void is done again, under the same id.",
    )
    group: str
    step: int = Field(description="The optimizer's step of this number, from 0, is the first with the new values.")
    changes: dict[str, Change] = Field(description="`lr`, `momentum`, `betas`, `weight_decay`, `freeze`: from what to what.")
    by: str
    factor: float | None = Field(
        default=None, description="Of a rule's cut: what lr is multiplied with at this step, and in the rest of its schedule."
    )
    refused: str | None = Field(default=None, description="Why it was not done, or is not done again; nothing has changed then.")


class RuleData(Data):
    """A rule of the spec has fired, and done what it says."""

    kind = "rule"
    rule: Literal["early_stopping", "nan", "inf", "spike"]
    action: Literal["stop", "pause", "cut_lr", "rollback", "none"]
    step: int = Field(description="That of the loss, or the figure, at which it fired.")
    value: Figure | None = Field(default=None, description="That loss, or figure.")
    limit: Figure | None = Field(default=None, description="What it was measured by.")
    message: str


class CheckpointData(Data):
    """A checkpoint was written. It exists once this event is committed."""

    kind = "checkpoint"
    step: int
    epoch: int = Field(description="That of its last step, from 0.")
    figures: dict[str, Figure] = Field(
        description="`mean_loss` and those of the validation; in the middle of an epoch only `mean_loss`, so far."
    )
    best: bool = Field(
        description=(
            "Better than every one before it, by the metric of the spec; one without a validation only than its like, and one "
            "whose figure is no number never."
        )
    )
    path: str = Field(description="Relative to the data directory.")
    sha256: str = Field(description="Of model.safetensors.")
    bytes: int = Field(description="Of the whole checkpoint.")


class LogData(Data):
    """A line: what the training code printed or warned, a checkpoint passed over as damaged, an image that is left out."""

    kind = "log"
    level: Literal["info", "warning", "error"] = "info"
    message: str


class LeftOutData(Data):
    """Images that cannot be read, and are in no batch from a step on (`dataset.corrupt: skip`)."""

    kind = "left_out"
    split: Literal["training", "validation"]
    since: int = Field(description="The first step, from 0, that goes without them.")
    samples: list[int] = Field(description="Their indices in the split; 10,000 at most, the others are in events after it.")


class RewoundData(Data):
    """Training goes on from an earlier step; what the log says beyond it is void."""

    kind = "rewound"
    to_step: int


class Failure(BaseModel):
    """Why a job failed, and the next thing to try."""

    type: FailureKind
    message: str
    hint: str
    lines: list[str] = Field(default=[], description="The last lines that the training code printed.")


class EndData(Data):
    """Nothing follows this."""

    kind = "end"
    state: Literal["succeeded", "failed", "cancelled"]
    failure: Failure | None = None
    last_seq: int = Field(description="The `seq` of this very event.")


KINDS: dict[str, type[Data]] = {
    data.kind: data
    for data in (
        StateData, TransferData, GroupsData, IterationsData, EpochData, EvaluationData, AdjustedData, RuleData, CheckpointData,
        LeftOutData, LogData, RewoundData, EndData,
    )
}  # fmt: skip


class Iteration(NamedTuple):
    """One optimizer step, as the loop yields it: `step` counts from 0 over the whole job."""

    step: int
    epoch: int
    loss: float
    samples: int
    lr: dict[str, float]


class Event(BaseModel):
    """The envelope of the log."""

    seq: Annotated[int, Field(ge=1)]
    at: str = Field(description="ISO 8601, UTC.")
    attempt: int
    step: int
    kind: str
    data: dict[str, Any]


def chunk(iterations: Sequence[Iteration]) -> IterationsData:
    """Consecutive iterations of one epoch as one event."""
    first, last = iterations[0], iterations[-1]
    return IterationsData(epoch=first.epoch, first=first.step, losses=[shortest(i.loss) for i in iterations], lr=last.lr)
