"""How a job trains."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

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
    )


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
