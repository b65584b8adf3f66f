"""How a job trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.spec.divergence import DivergenceSpec
from core.spec.values import Name, Named, Part


class LossSpec(Named):
    """A loss of torch.nn by class name."""

    name: Name = Field(default="CrossEntropyLoss", description="A loss class of `torch.nn`.")


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
