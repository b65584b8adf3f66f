"""The typed events: the one schema of a job's log. Imports no torch.

A job is what its log says. `core.training.loop` yields `(step, data)`; the service stores them in order, with a `seq`. `step` is
the number of optimizer steps completed when the event happened.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from core.figures import better, own_of
from core.spec.values import Task

Figure = float | Literal["nan", "inf", "-inf"]
"""A number that JSON can carry: what is not finite goes as text."""

FailureKind = Literal[
    "data", "transfer", "out_of_memory", "non_finite_loss", "diverged", "disk_full", "worker_lost", "timeout", "crashed"
]  # fmt: skip
JobState = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]


def figure(value: float) -> Figure:
    """A float as JSON can carry it."""
    if math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def number(value: Figure) -> float:
    """The float behind a `Figure`: the inverse of `figure`."""
    return float(value)


def shortest(value: float) -> Figure:
    """The shortest decimal that restores `value` as a float32 (so 0.1 and not 0.10000000149011612)."""
    return figure(float(str(np.float32(value))))


class Data(BaseModel):
    """The payload of an event. `kind` is how the log calls it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: ClassVar[str]


class StateData(Data):
    """The job changed state. Written by the service, never by the trainer."""

    kind = "state"
    state: JobState
    reason: str | None = None
    by: str | None = Field(default=None, description="Who did it: a worker's name, `api`, or `reaper`.")


TargetStatus = Literal["loaded", "adapted", "reinit", "missing", "excluded", "own"]
"""As it came; made to fit by an adapter; there, but started anew; not there; not wanted; computed by the model."""
SourceStatus = Literal["used", "dropped", "unexpected"]
"""Loaded or adapted; kept out by a rule, the head or `exclude`; of no use to this model."""
Adapter = Literal["head_rows", "in_channels", "position_embedding", "patch_embedding", "relative_bias"]


class TargetEntry(BaseModel):
    """One parameter or persistent buffer of the model, and what became of it."""

    key: str
    buffer: bool = Field(default=False, description="A persistent buffer, and no parameter.")
    status: TargetStatus
    shape: list[int]
    source_key: str | None = None
    source_shape: list[int] | None = None
    reason: str | None = Field(default=None, description="Why it was not loaded, or what was done to load it.")
    cast: str | None = Field(default=None, description="`float16 -> float32` where the dtypes differ.")
    adapter: Adapter | None = Field(default=None, description="What made the source's tensor fit, where it is adapted.")


class SourceEntry(BaseModel):
    """One tensor of the source, and what became of it."""

    key: str
    status: SourceStatus
    shape: list[int]
    renamed: str | None = Field(default=None, description="Its name after all steps, where they changed it.")
    reason: str | None = None


class Count(BaseModel):
    """Tensors, and the elements in them."""

    tensors: int = 0
    elements: int = 0


class ModuleCount(BaseModel):
    """The transfer of one top-level module."""

    module: str
    loaded: Count
    adapted: Count = Count()
    total: Count


class TransferStep(BaseModel):
    """One thing that was done to the source's names before they were compared with the model's."""

    kind: Literal["container", "wrapper", "select", "rename", "drop", "prefix", "suffix"]
    detail: str = Field(description="The rule, or what was found: `module`, `+encoder.`, `^encoder\\. -> `.")
    keys: int = Field(description="How many names it changed, or took out.")


class TransferData(Data):
    """The transfer report: each target and each source entry once, with one status."""

    kind = "transfer"
    source: str | None = Field(description="As the spec has it; null when the job trains from scratch.")
    format: Literal["safetensors", "torch", "torchvision", "timm"] | None = None
    sha256: str | None = None
    model: str | None = Field(
        default=None, description="What the source is the weights of, where it says: `torchvision:resnet18`."
    )
    head: list[str] = Field(default=[], description="The modules whose shape depends on the number of classes.")
    loaded_share: float = Field(
        description="Share of the elements that came from the source, of those outside the head, `exclude` and `own`."
    )
    totals: dict[TargetStatus, Count]
    source_totals: dict[SourceStatus, Count]
    casts: dict[str, Count] = Field(default={}, description="What was loaded into another dtype: `float16 -> float32`.")
    modules: list[ModuleCount]
    steps: list[TransferStep] = Field(default=[], description="In order, what brought the source's names to the model's.")
    targets: list[TargetEntry]
    sources: list[SourceEntry]


class GroupRow(BaseModel):
    """One parameter group as it trains."""

    name: str
    of: str = Field(
        description="The group of the spec that it is, or is a part of (`layer_decay` and `no_decay` make several of one)."
    )
    hyperparameters: dict[str, Any] = Field(description="lr, weight_decay, momentum, betas: what the optimizer's group holds.")
    schedule: dict[str, Any] | None = Field(
        default=None, description="That of its lr, with everything filled in; null where lr is constant."
    )
    frozen: bool = Field(description="In the first epoch.")
    until_epoch: int | None = Field(description="Where it is frozen for a time: the first epoch that trains it, from 0.")
    tensors: int
    elements: int
    parameters: list[str] = Field(description="Names; tied parameters once, under their first name.")


class ParameterRow(BaseModel):
    """One parameter, however many names it has."""

    names: list[str] = Field(description="More than one where it is tied.")
    group: str
    shape: list[int]
    elements: int
    depth: int = Field(description="0 is the stem, each block one more; the head is the deepest.")
    roles: list[str] = Field(description="`head` or `backbone`; `norm`, `bias`.")
    type: str = Field(description="The class of the module that owns it.")
    frozen: Literal["group", "model"] | None = Field(
        description="By its group, in the first epoch, or by the model's own code, for good; null where it trains."
    )


class GroupsData(Data):
    """The parameter groups: each parameter in exactly one."""

    kind = "groups"
    optimizer: str
    groups: list[GroupRow]
    executed_groups: int = Field(description="Groups that the optimizer runs, once equal ones are one.")
    fused: bool
    runs: str | None = Field(
        default=None,
        description="Where and how the model runs: `cuda:0, bf16, channels_last`; null in a plan: it cannot tell.",
    )
    parameters: list[ParameterRow] = Field(description="Each once, group by group.")


def present(
    table: dict[str, Any], epoch: int, lr: Mapping[str, float], *, step: int = 0, adjusted: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The data of a `groups` event as it stands in `epoch` (from 0), after `step` steps.

    `lr` is that of the last of these steps by group, and `adjusted` the data of the folded events since, in order. `frozen` is
    that of now, and each group has `present`: its hyper-parameters now.
    """
    groups = []
    for row in table["groups"]:
        own = [one for one in adjusted if one["group"] in (row["name"], row["of"])]
        new = {key: (one["step"], change["to"]) for one in own for key, change in one["changes"].items()}
        values = {**row["hyperparameters"], **{key: to for key, (_, to) in new.items() if key != "freeze"}}
        if new.get("lr", (-1, None))[0] < step:  # the last step has used it, and a schedule has gone on from it
            values["lr"] = lr.get(row["name"], values["lr"])
        thawed = row["until_epoch"] is not None and epoch >= row["until_epoch"]
        frozen = new["freeze"][1] if "freeze" in new else row["frozen"] and not thawed
        until = None if "freeze" in new else row["until_epoch"]
        groups.append({**row, "frozen": frozen, "until_epoch": until, "present": values})
    frozen_now = {row["name"]: "group" if row["frozen"] else None for row in groups}
    parameters = [row if row["frozen"] == "model" else {**row, "frozen": frozen_now[row["group"]]} for row in table["parameters"]]
    return {**table, "groups": groups, "parameters": parameters}


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
    refused: str | None = Field(default=None, description="Why it could not be done; nothing has changed then.")


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
