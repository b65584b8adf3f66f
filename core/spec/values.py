"""What every part of the spec is made of: texts that can be stored, keywords of constructors, and parts with known keys."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def storable(text: str) -> str:
    """The text itself. Raises ValueError where it cannot be stored: PostgreSQL takes no NUL, and UTF-8 no lone surrogate."""
    if "\x00" in text:
        raise ValueError("the character U+0000 cannot be stored; leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a lone surrogate is no character; send valid Unicode") from None
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(storable)]
Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(storable)]
Label = Annotated[str, Field(max_length=200), AfterValidator(storable)]
MOST_LABELS = 64
Task = Literal["multiclass", "multilabel", "regression"]
"""What a dataset's targets are: one class of several, any of several classes, or numbers."""
Priority = Annotated[int, Field(ge=-1000, le=1000)]


def _scalar(value: object) -> None:
    if isinstance(value, str):
        storable(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("NaN and infinity are no numbers in JSON; send a finite one")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("this integer does not fit 64 bits")
    elif not isinstance(value, str | int | float | None):
        raise ValueError("send a number, a text, true, false, null, or a list or object of these")


def _keyword(value: object) -> object:
    """What a constructor may be given: a scalar, or one list or object of scalars. One message, where a union gives seven."""
    if not isinstance(value, list | dict):
        _scalar(value)
        return value
    if len(value) > 100_000:
        raise ValueError("at most 100000 items")
    for item in [*value, *value.values()] if isinstance(value, dict) else value:
        _scalar(item)
    return value


Keyword = Annotated[Any, AfterValidator(_keyword)]


class Part(BaseModel):
    """A part of the spec whose keys are all ours: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class WithKeywords(BaseModel):
    """A part that has, beside keys of ours, the keywords of a constructor."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Keyword] = Field(init=False)

    @property
    def keywords(self) -> dict[str, Any]:
        """The constructor's keywords, unchecked."""
        return dict(self.model_extra or {})


class Named(WithKeywords):
    """`{"name": …}` plus the keywords of that name's own constructor."""

    name: Name
