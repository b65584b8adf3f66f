"""What the API answers, typed: the models behind the OpenAPI page.

Stored JSON goes out as it was stored; the tests hold it to these models.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, create_model

from core.adjustments import GroupPatch
from core.events import (
    KINDS,
    Event,
    Failure,
    Figure,
    GroupRow,
    GroupsData,
    HardSample,
    JobState,
    RuleData,
    TransferData,
)
from core.spec import MOST_LABELS, JobSpec, Label, Name, Priority, Task

Time = Annotated[str, Field(description="ISO 8601, UTC.", examples=["2026-01-31T12:00:00.123Z"])]
STATES: tuple[JobState, ...] = get_args(JobState)


class Progress(BaseModel):
    """How far a job is, as of its last committed event."""

    step: int = Field(description="Optimizer steps completed.")
    steps: int | None = Field(description="Of how many; once a job has stopped early, those that it did.")
    epoch: int = Field(description="Epochs completed.")
    epochs: int
    share: float = Field(ge=0, le=1, description="step / steps.")


class Latest(BaseModel):
    """The newest figures."""

    loss: Figure | None = None
    lr: dict[str, float] | None = Field(default=None, description="Per parameter group.")
    mean_loss: Figure | None = Field(default=None, description="Of the last epoch.")
    validation: dict[str, Figure] | None = Field(default=None, description="Of the last epoch: `loss`, `top1` and the like.")
    samples_per_second: float | None = None


class Best(BaseModel):
    """The best checkpoint so far, and its figures."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Figure] = Field(init=False)

    step: int
    epoch: int


class Links(BaseModel):
    """Where the rest of the job is."""

    self: str
    events: str
    logs: str
    losses: str
    transfer: str
    groups: str
    evaluation: str
    checkpoints: str


class ForkedFrom(BaseModel):
    """The job that a fork was made of; it may have been deleted since."""

    job: int
    step: int | None = Field(description="Of the checkpoint whose weights it began with; null where it took none.")


class Pinned(BaseModel):
    """The pretrained weights as they were when the job was submitted; null is what was not known then, or does not apply.

    A job takes these bytes and no others: a file that has changed since fails it.
    """

    source: str = Field(description="As the spec has it.")
    file: str | None = Field(description="The file's name.")
    sha256: str | None = Field(description="Of the file, or of the checkpoint's weights.")
    bytes: int | None
    url: str | None = Field(description="From where a worker fetches it, if it is not here.")
    repository: str | None = Field(description="On the Hugging Face hub.")
    revision: str | None = Field(description="The commit in it.")
    job: int | None = Field(description="Whose checkpoint it is. It is kept at least until this job has ended.")
    step: int | None = Field(description="Of the checkpoint.")


class Job(BaseModel):
    """A job."""

    id: int
    name: str | None
    labels: dict[str, str]
    priority: int = Field(description="Higher goes first.")
    state: JobState
    requested: str | None = Field(description="A command that was not yet obeyed: `cancel` or `pause`.")
    spec: JobSpec = Field(description="With every default filled in.")
    progress: Progress
    latest: Latest
    best: Best | None
    attempt: int = Field(description="How often a worker has taken it.")
    failures: int = Field(description="Lost attempts in a row; at `spec.resources.max_attempts` the job fails.")
    failure: Failure | None
    pinned: Pinned | None = Field(description="The pretrained weights as they were pinned; null where it trains from scratch.")
    forked_from: ForkedFrom | None = Field(description="Where a fork comes from.")
    ran_seconds: float = Field(
        description="How long it has run, over all attempts, without waiting and pauses: what `spec.resources.max_hours` limits."
    )
    position: int | None = Field(
        description="While queued: how many of its queue go before it, of those that a worker could run."
    )
    stopped_early: RuleData | None = Field(description="Why it succeeded before its last epoch; null where it did not.")
    eta_seconds: float | None = Field(
        description="While running, once it can be told: until the last step, if no rule stops it before."
    )
    warnings: list[str] = Field(description="What the plan warned of; and, while queued, that no living worker could run it.")
    waits_for: list[str] = Field(description="While queued: what worker it waits for, where no living one could run it.")
    created_at: Time
    queued_at: Time
    started_at: Time | None
    ended_at: Time | None
    links: Links


class JobPatch(BaseModel):
    """What of a job may change, as a JSON merge patch."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    labels: dict[Name, Label | None] | None = Field(default=None, max_length=MOST_LABELS, description="null takes one away.")
    priority: Priority | None = Field(default=None, description="Higher goes first; null is 0.")


class JobPage(BaseModel):
    """Jobs, newest first."""

    data: list[Job]
    has_more: bool
    next: int | None = Field(description="Send it as `after` for the next page; null on the last.")


def _typed(kind: str) -> type[Event]:
    """The envelope of one kind of event."""
    data = KINDS[kind]
    name = data.__name__.removesuffix("Data") + "Event"
    fields: dict[str, Any] = {"kind": (Literal[kind], ...), "data": (data, ...)}
    return create_model(name, __base__=Event, __doc__=data.__doc__, **fields)


TYPED_EVENTS = {kind: _typed(kind) for kind in KINDS}
if TYPE_CHECKING:
    AnyEvent = Event
else:
    AnyEvent = Annotated[functools.reduce(operator.or_, TYPED_EVENTS.values()), Field(discriminator="kind")]


class GroupNow(GroupRow):
    """One parameter group as it trains now."""

    frozen: bool = Field(description="Now.")
    present: dict[str, Any] = Field(description="Its hyper-parameters now; the lr is that of the last committed step.")


class Adjustment(BaseModel):
    """Other values for a parameter group, that were asked for and are still to come."""

    id: int
    group: str
    changes: GroupPatch = Field(description="The new values.")
    at_step: int | None = Field(description="How many steps are completed then; null: the next one.")
    by: str


class GroupsNow(GroupsData):
    """The parameter groups as they train now: each parameter in exactly one.

    Before a worker begins, the names of parameters are left out.
    """

    groups: list[GroupNow]  # type: ignore[assignment]  # a list of what is more than the event has
    executed_groups: int = Field(description="Groups that the optimizer ran, once equal ones were one, when the job began.")
    pending: list[Adjustment] = Field(description="Changes that are still to come, in the order in which they were asked for.")


class EventPage(BaseModel):
    """Events, oldest first."""

    data: list[AnyEvent]
    has_more: bool = Field(description="Whether more are there already.")
    next: int = Field(description="Send it as `after`: for the next page, or later for what came since.")


class Bucket(BaseModel):
    """Consecutive steps as one point."""

    first: int = Field(description="The first step in it.")
    last: int = Field(description="The last step in it.")
    min: float | None = Field(description="Of the finite losses, as max and mean; null where there is none.")
    max: float | None
    mean: float | None
    count: int
    non_finite: int = Field(description="How many of them are no finite numbers.")


class Losses(BaseModel):
    """The loss of every step, once: what the log says with rewinds applied."""

    steps: int = Field(description="How many there are.")
    losses: list[Figure] | None = Field(default=None, description="By step, from 0. Without `points`.")
    buckets: list[Bucket] | None = Field(default=None, description="With `points`: that many at the most, in order.")


class ClassFigures(BaseModel):
    """A class, or a target of a regression, in one validation. null is what its task does not have, or what is of no sample."""

    name: str
    support: int | None = Field(default=None, description="Samples that have it.")
    predicted: int | None = Field(default=None, description="Samples for which it was predicted.")
    correct: int | None = Field(default=None, description="Samples of which both holds.")
    recall: float | None = Field(default=None, description="correct / support.")
    precision: float | None = Field(default=None, description="correct / predicted.")
    f1: float | None = Field(default=None, description="The harmonic mean of the two.")
    average_precision: Figure | None = None
    mae: Figure | None = None
    rmse: Figure | None = None


class Confusion(BaseModel):
    """Samples of one class for which another one was predicted."""

    target: str
    prediction: str
    samples: int


SampleLabel = str | list[str] | list[Figure]


class HardSampleNamed(HardSample):
    """A sample of the validation with a high loss: a class, labels, or numbers."""

    target: SampleLabel  # type: ignore[assignment]  # by name, where the event has numbers
    prediction: SampleLabel  # type: ignore[assignment]


class Evaluation(BaseModel):
    """The validation of an epoch in full."""

    epoch: int = Field(description="From 0.")
    step: int = Field(description="Optimizer steps completed.")
    task: Task
    samples: int
    figures: dict[str, Figure]
    classes: list[ClassFigures] = Field(description="In the dataset's order.")
    confused: list[Confusion] | None = Field(description="The most frequent first, 1,000 at most; null where it does not apply.")
    confused_left_out: int = Field(description="Samples in rarer confusions.")
    hardest: list[HardSampleNamed] | None = Field(
        description="The 16 with the highest loss, the highest first; null where the loss cannot be told per sample."
    )


class Sample(BaseModel):
    """A sample of the training split."""

    index: int = Field(description="In the training split, from 0.")
    name: str = Field(description="Its file, or the like of `train[17]`.")
    label: SampleLabel = Field(description="Its class, its labels, or its numbers.")
    left_out: bool = Field(description="It could not be read, and the step went without it: the log's `left_out` says so.")


class StepSamples(BaseModel):
    """What an optimizer step is made of."""

    step: int = Field(description="From 0 over the whole job.")
    epoch: int = Field(description="From 0.")
    iteration: int | None = Field(
        description="From 1 within its epoch, as the lines of `/logs` count; null before a worker has begun."
    )
    loss: Figure | None = Field(description="Its loss; null where it has not been trained yet.")
    batches: list[int] = Field(description="The numbers of its batches in the epoch, from 0.")
    samples: list[Sample] = Field(description="In the order in which they are read.")


class Checkpoint(BaseModel):
    """A checkpoint that is kept."""

    step: int
    epoch: int
    figures: dict[str, Figure]
    best: bool = Field(
        description="The best of those that are kept, by the spec's metric; what was validated goes before the rest."
    )
    validated: bool = Field(description="Whether its figures are of a validation: those of a pause in mid-epoch are not.")
    sha256: str = Field(description="Of weights.safetensors.")
    bytes: int = Field(description="Of the whole checkpoint on the disk, optimizer state included.")
    weights_bytes: int | None = Field(description="Of weights.safetensors, the download; null where the file is gone.")
    weights: str = Field(description="Where to download the weights.")
    model: str = Field(description="Where to download what they are: architecture, classes, preprocessing, figures, hashes.")


class Checkpoints(BaseModel):
    """The checkpoints that are kept, oldest first."""

    data: list[Checkpoint]


class DatasetCounts(BaseModel):
    """Of all; the lists of a dataset have the first thousand."""

    classes: int = Field(description="Classes that have an image; of a CSV also its labels, or its numbers.")
    train: int = Field(description="Images.")
    validation: int = Field(description="Images; 0 where it has no split of its own.")
    corrupt: int = Field(description="Images that cannot be read.")
    repeated: int = Field(description="Pictures that are more than once in one class of one split, or with the same targets.")
    conflicting: int = Field(description="Pictures that are in several classes, or with targets that differ.")
    leaking: int = Field(description="Pictures that are in both splits.")
    left_out: int = Field(description="Files that were not kept: of other kinds, or in no class folder.")


class DatasetSummary(BaseModel):
    """An uploaded dataset."""

    id: int
    name: str | None
    source: str = Field(description="How a spec names it.", examples=["upload:1"])
    sha256: str = Field(description="Of its names and contents: the same files are one dataset.")
    task: Task | None = Field(
        description="What its targets are; null where its CSV can be read in two ways: then a job says it by `dataset.task`."
    )
    images: int
    bytes: int
    counts: DatasetCounts
    warnings: list[str] = Field(description="What to know, or to mend, before a job trains on it.")
    created_at: Time


class ClassCount(BaseModel):
    """The images of a class; of a CSV, those that have a label, or all for each number to be learnt."""

    name: str
    train: int
    validation: int = Field(description="0 where the dataset has no split of its own; a job then holds out a share of `train`.")


class CorruptImage(BaseModel):
    """An image that cannot be read. It was kept: a job on it is refused, or leaves it out (`dataset.corrupt`)."""

    name: str
    reason: str


class SamePicture(BaseModel):
    """The same bytes under several names."""

    sha256: str
    count: int
    names: list[str] = Field(description="The first of them.")


class Duplicates(BaseModel):
    """Pictures that are there more than once. One in several classes and in both splits is in two of the lists."""

    repeated: list[SamePicture] = Field(description="In one class of one split, or with the same targets.")
    conflicting: list[SamePicture] = Field(description="In several classes, or with targets that differ: one of them is wrong.")
    leaking: list[SamePicture] = Field(description="In both splits: the validation will look better than it is.")


class Dataset(DatasetSummary):
    """An uploaded dataset, and what the check found in it. Names are paths below its root."""

    classes: list[ClassCount]
    corrupt: list[CorruptImage]
    empty_classes: list[str] = Field(description="Folders without an image: they are no classes.")
    duplicates: Duplicates


class DatasetPage(BaseModel):
    """Datasets, newest first."""

    data: list[DatasetSummary]
    has_more: bool
    next: int | None = Field(description="Send it as `after` for the next page; null on the last.")


class Worker(BaseModel):
    """A worker, by its last heartbeat."""

    name: str
    host: str
    alive: bool = Field(description="Whether it was heard of lately.")
    queues: list[str]
    devices: dict[str, Any]
    running: list[int] = Field(description="Ids of jobs.")
    draining: bool = Field(description="It takes no new job, and leaves once it runs none.")
    started_at: Time
    seen_at: Time


class Workers(BaseModel):
    """Workers, living ones first, and how many jobs each queue holds by state."""

    data: list[Worker]
    queues: dict[str, dict[str, int]]


class Health(BaseModel):
    """The service is well."""

    status: Literal["live", "ready"]


class DatasetFacts(BaseModel):
    """What the dataset turned out to be."""

    source: str
    task: Task
    classes: list[str] = Field(description="The names of the model's outputs: of a regression those of its numbers.")
    channels: int
    size: list[int] | None = Field(description="Height and width where all images share them.")
    train: int = Field(description="Samples.")
    validation: int = Field(description="Samples.")
    fingerprint: str


class Preprocessing(BaseModel):
    """How images reach the model."""

    size: int
    mean: list[float]
    std: list[float]


class Steps(BaseModel):
    """Optimizer steps."""

    per_epoch: int
    total: int


class SplitTier(BaseModel):
    """Where the decoded images of a split are held."""

    tier: Literal["resident", "cached", "streaming"] = Field(
        description="On the device as uint8; in a file of the disk's cache, decoded once; or decoded in each epoch."
    )
    bytes: int = Field(description="Of the split, decoded.")
    why: str


class Plan(BaseModel):
    """What a job will do, found out without training."""

    spec: JobSpec = Field(description="With every default filled in.")
    dataset: DatasetFacts
    preprocessing: Preprocessing
    tiers: dict[str, SplitTier] = Field(description="Of `train` and `validation`: where its decoded images are held.")
    transfer: TransferData | None = Field(
        description="null while nobody can tell: the file was not fetched yet, and does not begin with what is in it."
    )
    pinned: Pinned | None = Field(description="The pretrained weights as a job would be pinned to them.")
    groups: GroupsData
    steps: Steps
    lr: dict[str, list[tuple[int, float]]] = Field(
        description=(
            "Per group: its curve as [step, lr], a line between each two. The corners of what is piecewise linear, a jump with "
            "both its sides; smooth curves are sampled. ReduceLROnPlateau goes by the validation: lr as it begins."
        )
    )
    momentum: dict[str, list[tuple[int, float]]] = Field(
        description="The same of momentum, or of the first of betas, for the groups whose schedule moves it."
    )
    memory: dict[str, int] = Field(description="Bytes, estimated.")
    warnings: list[str] = Field(description="What works, and may not be meant; and that no living worker could run it now.")


class CatalogEntry(BaseModel):
    """A class that a spec may name."""

    keywords: dict[str, Any] = Field(description="Each keyword with its default.")
    refused: str | None = Field(description="Why a job cannot use it, where it cannot.")


class LossEntry(CatalogEntry):
    """A loss that a spec may name."""

    targets: dict[Task, str] = Field(description="Of each task that it fits, what it is given as targets.")
    unfit: dict[Task, str] = Field(description="Of each other task, why it does not fit. It depends on the numbers, too.")


class ScheduleEntry(CatalogEntry):
    """A schedule that a spec may name. A keyword that is null is required, or filled in: docs/schedules.md."""

    per: Literal["step", "epoch"] | None = Field(description="What its numbers count, unless the spec says otherwise.")


class Catalog(BaseModel):
    """What a spec may name."""

    datasets: dict[str, list[str]] = Field(description="By scheme: `torchvision`, `sklearn`, `folder`, `upload`.")
    models: list[str] = Field(description="Those of torchvision, and of timm where it is installed (more than a thousand).")
    pretrained: dict[str, list[str]] = Field(description="Per model, the names of its weights.")
    augmentations: dict[str, CatalogEntry] = Field(description="Operations of torchvision.transforms.v2 for `dataset.augment`.")
    losses: dict[str, LossEntry]
    optimizers: dict[str, CatalogEntry]
    schedules: dict[str, ScheduleEntry]
