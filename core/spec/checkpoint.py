"""When a checkpoint is written, and which are kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from core.spec.values import Name, Part


class EverySteps(Part):
    """Each N optimizer steps of the job."""

    steps: Annotated[int, Field(ge=1, le=10**9)]


class EveryMinutes(Part):
    """At the first step after so many minutes since the last one."""

    minutes: Annotated[float, Field(gt=0, le=10**6)]


def _every(value: object, check: ValidatorFunctionWrapHandler) -> object:
    """One message, where a union gives one for each of its types."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError('send "epoch", {"steps": 500} or {"minutes": 10}, with a number above 0') from None


class CheckpointSpec(Part):
    """When a checkpoint is written, and which are kept."""

    every: Annotated[Literal["epoch"] | EverySteps | EveryMinutes, WrapValidator(_every)] = Field(
        default="epoch",
        description=(
            "`epoch`: after each; or each so many steps or minutes, in the middle of an epoch too, and then also at the end of "
            "the job and, with `keep_best`, after an epoch that is the best so far. Only those after an epoch have figures of "
            "validation; the others have the mean loss of their epoch so far, and are never better than one that was validated."
        ),
        examples=["epoch", {"steps": 500}, {"minutes": 10}],
    )
    keep_last: Annotated[int, Field(ge=1, le=1000)] = 1
    keep_best: Annotated[int, Field(ge=0, le=1000)] = 1
    metric: Name | None = Field(
        default=None,
        description=(
            "The validation figure that says which is best; null: top1 of classes, mAP of several labels, mae of numbers."
        ),
        examples=["top1", "loss"],
    )
