"""Numbers as JSON carries them, and what every payload is."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

Figure = float | Literal["nan", "inf", "-inf"]
"""A number that JSON can carry: what is not finite goes as text."""


def figure(value: float) -> Figure:
    """A float as JSON can carry it."""
    if math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def number(value: Figure) -> float:
    """The float behind a `Figure`: the inverse of `figure`."""
    return float(value)


def shortest(value: float) -> Figure:
    """The shortest decimal that restores `value` as a float32 (so 0.1 and not 0.10000000149011612)."""
    return figure(float(str(np.float32(value))))


class Data(BaseModel):
    """The payload of an event. `kind` is how the log calls it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: ClassVar[str]
