"""The optimizer and its parameter groups."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from core.spec.schedule import ScheduleSpec
from core.spec.values import Keyword, Name, Named, Part


def _depth(value: object, check: ValidatorFunctionWrapHandler) -> object:
    """One message, where a union gives one for each of its types."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError(
            'send a depth such as 3, or a range such as "2..4", "..3" or "-2.."; 0 is the stem, -1 the head'
        ) from None


def _freeze(value: object, check: ValidatorFunctionWrapHandler) -> object:
    try:
        return check(value)
    except ValidationError:
        raise ValueError('send true, false or {"until_epoch": 2}, with a whole number above 0') from None


Role = Literal["head", "backbone", "norm", "bias"]
Several = Annotated[list[Name], Field(min_length=1, max_length=10_000)]
Depth = Annotated[
    Annotated[int, Field(strict=True, ge=-10_000, le=10_000)] | Annotated[str, Field(pattern=r"^(-?\d{1,5})?\.\.(-?\d{1,5})?$")],
    WrapValidator(_depth),
]


class _Selects(BaseModel):
    """Which parameters. What stands under several keys must hold together; of several values under one key, any."""

    params: Name | Several | None = Field(
        default=None,
        description="Globs over parameter names (`*` crosses dots), or `re:…` (full match).",
        examples=["fc.*", ["conv1.*", "bn1.*"], "re:layer[34]\\..*"],
    )
    role: Role | Annotated[list[Role], Field(min_length=1)] | None = Field(
        default=None,
        description=(
            "`head` (what depends on the number of classes) or `backbone` (the rest); `norm` (weights and biases of norms); "
            "`bias` (those of norms too)."
        ),
    )
    depth: Depth | None = Field(
        default=None,
        description="A depth, or a range with both ends in it: the stem is 0, each block one more, -1 is the head.",
        examples=["0..4", "-2..", 0],
    )
    type: Name | Several | None = Field(
        default=None,
        description="The class of a module, `BatchNorm2d` or `torch.nn.Linear`: its parameters, and those of what is in it.",
    )

    @property
    def selectors(self) -> dict[str, list[str]]:
        """What is given of `params`, `role`, `depth` and `type`, as lists."""
        given = {key: getattr(self, key) for key in SELECTORS if getattr(self, key) is not None}
        return {key: [str(one) for one in value] if isinstance(value, list) else [str(value)] for key, value in given.items()}


SELECTORS = tuple(_Selects.model_fields)


class Selector(_Selects, Part):
    """Some of the parameters."""

    @model_validator(mode="after")
    def _selects(self) -> Selector:
        if not self.selectors:
            raise ValueError(_SELECTS_NOTHING)
        return self


_SELECTS_NOTHING = f"which parameters? Give one or more of {', '.join(SELECTORS)}"


class UntilEpoch(Part):
    """Frozen for the first so many epochs."""

    until_epoch: Annotated[int, Field(strict=True, ge=1, le=100_000)]


class GroupSpec(_Selects):
    """One parameter group: which parameters, and their own hyper-parameters (any that the optimizer's groups take)."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Keyword] = Field(init=False)

    name: Name | None = Field(default=None, description="How the API calls this group; `group-N` by default.")
    freeze: Annotated[Annotated[bool, Field(strict=True)] | UntilEpoch, WrapValidator(_freeze)] = Field(
        default=False,
        description=(
            "Do not train these, at all or for the first epochs; norms among them stay in eval mode, and keep their statistics."
        ),
        examples=[True, {"until_epoch": 2}],
    )
    schedule: ScheduleSpec | None = Field(
        default=None, description="Its own schedule; by default the job's. `{}` keeps its lr constant where the job has one."
    )

    @model_validator(mode="after")
    def _selects(self) -> GroupSpec:
        if not self.selectors:
            near = [f"'{known}' for '{key}'" for key in self.keywords for known in get_close_matches(key, SELECTORS, 1)]
            raise ValueError(_SELECTS_NOTHING + (f". Did you mean {', '.join(near)}?" if near else ""))
        return self

    @property
    def keywords(self) -> dict[str, Any]:
        """The group's own hyper-parameters, unchecked."""
        return dict(self.model_extra or {})

    @property
    def until_epoch(self) -> int | None:
        """The first epoch that trains it, counted from 0; None where `freeze` names none."""
        return self.freeze.until_epoch if isinstance(self.freeze, UntilEpoch) else None


def _glob(value: object) -> object:
    return {"params": value} if isinstance(value, str) else value


def _bool_or_list(value: object) -> object:
    if not isinstance(value, bool | list):
        raise ValueError(  # noqa: TRY004 - pydantic takes no TypeError
            'send true, or a list of globs and selectors such as ["*.bias", {"role": "norm"}]'
        )
    return value


_Positive = Annotated[float, Field(strict=True, ge=0)]
_Beta = Annotated[float, Field(strict=True, ge=0, lt=1)]


class Hyperparameters(BaseModel):
    """What most optimizers' groups have, and what of it may change while a job trains."""

    lr: _Positive | None = Field(default=None, description="A schedule goes on from it, in proportion.", examples=[5e-4])
    momentum: _Positive | None = None
    betas: Annotated[list[_Beta], Field(min_length=2, max_length=2)] | None = None
    weight_decay: _Positive | None = None


class OptimizerSpec(Named):
    """An optimizer of torch.optim by class name, its keywords, and its parameter groups."""

    USUAL: ClassVar[tuple[str, ...]] = tuple(Hyperparameters.model_fields)
    """Keywords that most optimizers have, and their groups too."""

    name: Name = Field(default="Adam", description="An optimizer class of `torch.optim`.")
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description=(
            "The lr of a parameter is lr · layer_decay^(depth of the head - its depth), where its group does not say an lr."
        ),
        examples=[0.75],
    )
    no_decay: Annotated[
        bool | Annotated[list[Annotated[Selector, BeforeValidator(_glob)]], Field(min_length=1, max_length=1000)],
        BeforeValidator(_bool_or_list),
    ] = Field(
        default=False,
        description=(
            "weight_decay 0, where a group does not say one: `true` for norms, biases, other vectors, and embeddings of "
            "positions and tokens; or a list of globs and selectors."
        ),
        examples=[True, ["*.bias", {"type": "Embedding"}]],
    )
    groups: list[GroupSpec] = Field(
        default=[],
        max_length=10_000,
        description="In order, first match wins; what none matches is group `default`, with the optimizer's own values.",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> OptimizerSpec:
        seen: set[str] = {"default"}
        for name in self.group_names:
            if name in seen:
                raise ValueError(f"two parameter groups are called '{name}'; give each its own name")
            seen.add(name)
        return self

    @property
    def group_names(self) -> list[str]:
        """The names of `groups`, in order, with the default ones filled in."""
        return [group.name or f"group-{index}" for index, group in enumerate(self.groups)]
