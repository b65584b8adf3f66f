"""How a job trains."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from core.spec.values import Name, Named, Part


class LossSpec(Named):
    """A loss of torch.nn by class name."""

    name: Name = Field(default="CrossEntropyLoss", description="A loss class of `torch.nn`.")


class EarlyStoppingSpec(Part):
    """End the job, as if it had had no more epochs, once its validation no longer gets better."""

    patience: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=3, description="So many epochs in a row without a better figure end the job."
    )
    metric: Name | None = Field(
        default=None,
        description="The validation figure that it reads; null: top1 of classes, mAP of several labels, mae of numbers.",
        examples=["loss"],
    )
    min_delta: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Better is better by more than this.")


class TrainingSpec(Part):
    """How long, and from which seed."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    deterministic: bool = Field(
        default=False,
        description=(
            "The same bits each time on one kind of machine, on a GPU too: only algorithms that promise it, which are slower; "
            "an operation that has none fails."
        ),
    )
    early_stopping: EarlyStoppingSpec | None = Field(default=None, description="null: train every epoch.")
