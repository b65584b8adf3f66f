"""The whole spec."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from core.spec.checkpoint import CheckpointSpec
from core.spec.data import DatasetSpec, LoaderSpec
from core.spec.model import ModelSpec, PretrainedSpec
from core.spec.optimizer import OptimizerSpec
from core.spec.schedule import ScheduleSpec
from core.spec.training import LossSpec, TrainingSpec
from core.spec.values import MOST_LABELS, Label, Name, Part, Priority


class ResourcesSpec(Part):
    """What the job needs of a worker."""

    gpus: Annotated[int, Field(ge=0, le=64)] | None = Field(
        default=None,
        description=(
            "null: one GPU where the worker has any, else the CPU; 0: the CPU; more than one: so many GPUs of one host, "
            "each with its share of every batch."
        ),
    )
    queue: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = Field(
        default="default", description="At most 63 of a-z, 0-9, `.`, `_` and `-`; the first a letter or a digit."
    )
    priority: Priority = Field(default=0, description="Higher goes first.")
    max_attempts: Annotated[int, Field(ge=1, le=100)] = Field(
        default=3,
        description="How often in a row the job may be lost to a crash or a dead worker; a new checkpoint starts the count anew.",
    )
    max_hours: Annotated[float, Field(gt=0, le=100_000)] | None = Field(
        default=None, description="How long the job may run, over all its attempts; waiting and paused it does not run."
    )


class JobSpec(Part):
    """A transfer-learning job. Only `dataset` and `model` are required."""

    name: Name | None = None
    labels: dict[Name, Label] = Field(default={}, max_length=MOST_LABELS)
    dataset: DatasetSpec
    loader: LoaderSpec = LoaderSpec()
    model: ModelSpec
    pretrained: PretrainedSpec | None = Field(default=None, description="Left out: train from scratch.")
    loss: LossSpec = LossSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec | None = Field(default=None, description="Left out: lr is constant.")
    training: TrainingSpec = TrainingSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    resources: ResourcesSpec = ResourcesSpec()
