"""What is done about a job whose loss diverges."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from core.spec.values import Part


def _heals(action: object) -> object:
    if action == "cut_lr":
        raise ValueError(
            "no lr heals weights that have become NaN or infinite; 'rollback' goes back to before, and cuts the lr there"
        )
    return action


class SpikeSpec(Part):
    """A loss far above those before it."""

    action: Literal["stop", "pause", "cut_lr", "rollback"]
    factor: Annotated[float, Field(gt=1, le=10**6)] = Field(
        default=4, description="Above the running median times this a loss is a spike."
    )
    window: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=50, description="The losses of which that is the median; the rule waits until half of them are there."
    )
    patience: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="How many spikes in a row it takes: a single one may be an odd batch."
    )


class DivergenceSpec(Part):
    """Rules over every loss, and what each of them does. docs/divergence.md explains them."""

    non_finite: Annotated[Literal["stop", "pause", "rollback"], BeforeValidator(_heals)] = Field(
        default="stop", description="Where a loss, or that of a validation, is NaN or infinite."
    )
    spike: SpikeSpec | None = Field(default=None, description="Left out: a loss may rise as it likes, as long as it is finite.")
    lr_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="`cut_lr` and `rollback` multiply the lr of every group with it, for the rest of its schedule."
    )
    times: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="How often they may act in a job; after that it fails where one of them would."
    )

    @model_validator(mode="after")
    def _cuts(self) -> Self:
        if self.spike is not None and self.spike.action == "cut_lr" and self.lr_factor == 1:
            raise ValueError("with lr_factor 1 'cut_lr' has no effect; lower lr_factor")
        return self

    @property
    def rolls_back(self) -> bool:
        """Whether a rule may go back to a checkpoint and train on."""
        return "rollback" in (self.non_finite, self.spike and self.spike.action)
