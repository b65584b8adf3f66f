"""How a job trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.spec.divergence import DivergenceSpec
from core.spec.values import Name, Part, Task, WithKeywords

DEFAULT_LOSSES: dict[Task, str] = {"multiclass": "CrossEntropyLoss", "multilabel": "BCEWithLogitsLoss", "regression": "MSELoss"}


class LossSpec(WithKeywords):
    """A loss of torch.nn by class name, with its keywords.

    `weight` of CrossEntropyLoss, NLLLoss and MultiMarginLoss, and `pos_weight` of BCEWithLogitsLoss, may be `balanced`.
    """

    name: Name | None = Field(
        default=None,
        description=(
            "A loss class of `torch.nn`; by default `CrossEntropyLoss`, for several labels an image `BCEWithLogitsLoss`, for "
            "numbers `MSELoss`."
        ),
        examples=["CrossEntropyLoss"],
    )


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
    """How long, from which seed, and how batches become steps."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    divergence: DivergenceSpec = DivergenceSpec()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="Float type of the forward and backward pass; weights stay float32. `auto`: bf16 on a GPU that has it, "
        "fp16 on an older one, fp32 on the CPU.",
    )
    accumulate: Annotated[int, Field(ge=1, le=65536)] = Field(
        default=1, description="So many batches are one optimizer step, as if they were one batch; an epoch's last may be fewer."
    )
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="The norm of all gradients together is scaled down to it where it is larger."
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Decay of a running average of the weights, 0.999 for example: it is what is validated and kept.",
    )
    channels_last: bool | None = Field(
        default=None, description="Images by pixel in memory, not by channel; null: where it is likely faster."
    )
    compile: bool = Field(
        default=False, description="Run the model through torch.compile: it starts later and trains faster. Needs a C++ compiler."
    )
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
    early_stopping: EarlyStoppingSpec | None = Field(default=None, description="null: train every epoch.")
