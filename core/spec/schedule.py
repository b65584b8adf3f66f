"""How lr goes over a job."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.spec.values import Keyword, Name


class ScheduleSpec(BaseModel):
    """How lr goes over a job: a scheduler of torch by class name with its keywords, after a warmup; without a name, constant."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Keyword] = Field(init=False)

    name: Name | None = Field(
        default=None,
        description="A scheduler class of `torch.optim.lr_scheduler`; null: constant, after the warmup.",
        examples=["CosineAnnealingLR", "OneCycleLR"],
    )
    per: Literal["step", "epoch"] | None = Field(
        default=None, description="What its numbers count; by default what is usual for that name (GET /catalog says)."
    )
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = Field(
        default=0, description="Steps in which lr rises, linearly, to where the schedule begins; the schedule starts after them."
    )
    warmup_epochs: Annotated[float, Field(gt=0, le=100_000)] | None = Field(
        default=None, description="The same in epochs, or a part of one; instead of `warmup_steps`."
    )
    warmup_start: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="The share of lr that the warmup begins at."
    )
    metric: Name | None = Field(
        default=None,
        description=(
            "For ReduceLROnPlateau: the validation figure that it reads; by default the loss, with mode `max` the first of the "
            "task's figures that is best when it is highest (top1, mAP, r2)."
        ),
        examples=["loss", "top1"],
    )

    @model_validator(mode="after")
    def _one_warmup(self) -> ScheduleSpec:
        if self.warmup_steps and self.warmup_epochs is not None:
            raise ValueError("the warmup is given twice; send warmup_steps or warmup_epochs")
        return self

    @property
    def keywords(self) -> dict[str, Any]:
        """The scheduler's own keywords, unchecked."""
        return dict(self.model_extra or {})
