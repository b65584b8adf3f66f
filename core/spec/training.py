"""How a job trains."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from core.spec.divergence import DivergenceSpec
from core.spec.values import Name, Named, Part


class LossSpec(Named):
    """A loss of torch.nn by class name."""

    name: Name = Field(default="CrossEntropyLoss", description="A loss class of `torch.nn`.")


class TrainingSpec(Part):
    """How long, and from which seed."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    divergence: DivergenceSpec = DivergenceSpec()
    deterministic: bool = Field(
        default=False,
        description=(
            "The same bits each time on one kind of machine, on a GPU too: only algorithms that promise it, which are slower; "
            "an operation that has none fails."
        ),
    )
