"""How a job trains."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from core.spec.values import Name, Named, Part


class LossSpec(Named):
    """A loss of torch.nn by class name."""

    name: Name = Field(default="CrossEntropyLoss", description="A loss class of `torch.nn`.")


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
    mixup: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        default=None,
        description=(
            "Blend each training image, and its targets, with another of its batch, by a share from Beta(mixup, mixup) "
            "(https://arxiv.org/abs/1710.09412)."
        ),
        examples=[0.2],
    )
    cutmix: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        default=None,
        description=(
            "Put a rectangle of another image of its batch into each, and blend the targets by area; its size from "
            "Beta(cutmix, cutmix) (https://arxiv.org/abs/1905.04899). With `mixup` too, each draws one of them."
        ),
        examples=[1.0],
    )
