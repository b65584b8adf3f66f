"""The job spec: what a person sends. Imports no torch, so that the api and the client can read it.

A named thing (model, loss, optimizer) is `{"name": …}` plus the keywords of that thing's own constructor; here they are only
held, `core.catalog` checks them against the signature. Every default stands in this file and nowhere else.
"""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from core.errors import Fault, did_you_mean, pointer_of


def _storable(text: str) -> str:
    """PostgreSQL's text takes no NUL, and UTF-8 no lone surrogate."""
    if "\x00" in text:
        raise ValueError("the character U+0000 cannot be stored; leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a lone surrogate is no character; send valid Unicode") from None
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(_storable)]
Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_storable)]
Label = Annotated[str, Field(max_length=200), AfterValidator(_storable)]
MOST_LABELS = 64
Priority = Annotated[int, Field(ge=-1000, le=1000)]


def _scalar(value: object) -> None:
    if isinstance(value, str):
        _storable(value)
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


class Named(BaseModel):
    """`{"name": …}` plus the keywords of that name's own constructor."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Keyword] = Field(init=False)

    name: Name

    @property
    def keywords(self) -> dict[str, Any]:
        """The constructor's keywords, unchecked."""
        return dict(self.model_extra or {})


class DatasetSpec(Part):
    """Which labelled images, at which size, and how much of them validates."""

    source: Name = Field(
        description="`torchvision:NAME`, `folder:PATH` (below the inputs directory) or `sklearn:digits`.",
        examples=["torchvision:FashionMNIST", "folder:flowers", "sklearn:digits"],
    )
    image_size: Annotated[int, Field(ge=8, le=2048)] | None = Field(
        default=None, description="Side in pixels; by default that of the pretrained weights, else the dataset's own."
    )
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1,
        description="Share of the training set held out (stratified, by seed) where there is no split of its own.",
    )


class LoaderSpec(Part):
    """The hyper-parameters of the loader."""

    batch_size: Annotated[int, Field(ge=1, le=65536)] = Field(
        default=32, description="Samples per optimizer step, over all GPUs."
    )
    shuffle: bool = Field(default=True, description="Draw a new order each epoch, a function of (seed, epoch).")
    drop_last: bool = Field(default=False, description="Leave the last, ragged batch of an epoch out.")
    workers: Annotated[int, Field(ge=0, le=256)] = Field(
        default=0, description="Processes that read and decode images; 0 reads in the trainer."
    )


class ModelSpec(Named):
    """The architecture, built for the dataset's classes."""

    name: Name = Field(description="`torchvision:NAME`, `timm:NAME` or `python:MODULE:CLASS`.", examples=["torchvision:resnet50"])


class PretrainedSpec(Part):
    """Where weights come from, and how their names map on to the model's. docs/transfer.md explains each key."""

    source: Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_storable)] = Field(
        description=(
            "`torchvision:NAME/WEIGHTS`, `timm:NAME`, `file:PATH` (below the inputs directory; .safetensors, .pt, .pth), "
            "`job:ID`, `job:ID@best`, `@last` or `@STEP`, `https://HOST/PATH` (with `sha256`), "
            "or `hf:ORG/REPO`, `/FILE` and `@REVISION` after it as you like."
        ),
        examples=[
            "torchvision:resnet50/IMAGENET1K_V2",
            "timm:resnet18.a1_in1k",
            "file:lite0.pth",
            "job:12",
            "hf:timm/resnet18.a1_in1k",
        ],
    )
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$"), AfterValidator(str.lower)] | None = Field(
        default=None, description="Of the file, in hex; with it no other file is taken. `https:` needs it."
    )
    container: Name | None = Field(
        default=None,
        description="The state dict to take of a .pt or .pth file that holds more than one, or only an average (`model_ema`); "
        "dots lead to a nested one.",
    )
    select: Name | None = Field(
        default=None, description="Take only the source's tensors below this name (`teacher.backbone`), and leave it off."
    )
    rename: list[tuple[Text, Text]] = Field(
        default=[],
        max_length=1000,
        description="Ordered `[regex, replacement]` pairs, each applied by `re.sub` to every source key in turn.",
    )
    drop: list[Name] = Field(default=[], max_length=1000, description="Globs over the renamed keys: these are not loaded.")
    suffix_match: bool = Field(
        default=False,
        description="Bring together names of which one is the end of the other (`conv1.weight`, `trunk.conv1.weight`), "
        "the longest first; two that fit equally well are an error.",
    )
    exclude: list[Name] = Field(
        default=[],
        max_length=1000,
        description="Globs over the model's own keys: these start anew whatever the source has; `min_loaded` leaves them out.",
    )
    head: Literal["auto", "keep", "reset", "rows"] = Field(
        default="auto",
        description=(
            "`auto` loads it where the source tells the same classes apart, else starts it anew; `keep` must fit; `reset` "
            "starts it anew; `rows` takes the rows of the classes that both sides have."
        ),
    )
    classes: list[Name] | None = Field(
        default=None,
        min_length=1,
        max_length=100_000,
        description="The source's classes, in the order of its head's rows, where it does not say.",
    )
    class_map: dict[Name, Name | Annotated[int, Field(ge=0)]] = Field(
        default={},
        max_length=100_000,
        description="For `rows`: a class of the dataset, and what the source calls it, or the number of its row.",
    )
    grid: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        default=None, description="Rows and columns of patches in the source's position embedding, where it is not square."
    )
    min_loaded: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5,
        description="Share of the model's elements outside its head and `exclude` that must come from the source.",
    )


class LossSpec(Named):
    """A loss of torch.nn by class name."""

    name: Name = Field(default="CrossEntropyLoss", description="A loss class of `torch.nn`.")


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
    metric: Literal["loss", "top1"] | None = Field(
        default=None,
        description="For ReduceLROnPlateau: the validation figure that it reads; by default the loss, with mode `max` top1.",
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


class OptimizerSpec(Named):
    """An optimizer of torch.optim by class name, its keywords, and its parameter groups."""

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
    metric: Literal["top1", "loss"] = Field(
        default="top1", description="The validation figure that says which is best (the highest top1, the lowest loss)."
    )


class ResourcesSpec(Part):
    """What the job needs of a worker."""

    gpus: Annotated[int, Field(ge=0, le=64)] | None = Field(
        default=None,
        description=(
            "null: one GPU where the worker has any, else the CPU; 0: the CPU; more than one: so many GPUs of one host, "
            "each with its share of every batch."
        ),
    )
    queue: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = "default"
    priority: Priority = Field(default=0, description="Higher goes first.")
    max_attempts: Annotated[int, Field(ge=1, le=100)] = Field(
        default=3,
        description="How often in a row the job may be lost to a crash or a dead worker; a new checkpoint starts the count anew.",
    )
    max_hours: Annotated[float, Field(gt=0, le=100_000)] | None = Field(
        default=None, description="How long the job may run, over all its attempts; waiting and paused it does not run."
    )


class JobSpec(Part):
    """A transfer-learning job. Only `dataset` and `model` are required."""

    name: Name | None = None
    labels: dict[Name, Label] = Field(default={}, max_length=MOST_LABELS)
    dataset: DatasetSpec
    loader: LoaderSpec = LoaderSpec()
    model: ModelSpec
    pretrained: PretrainedSpec | None = Field(default=None, description="Left out: train from scratch.")
    loss: LossSpec = LossSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec | None = Field(default=None, description="Left out: lr is constant.")
    training: TrainingSpec = TrainingSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    resources: ResourcesSpec = ResourcesSpec()


def faults_of(error: ValidationError, model: type[BaseModel] = JobSpec) -> list[Fault]:
    """Pydantic's errors as faults: a JSON pointer each, and for an unknown key the one that was likely meant.

    Where a value may have one of two types both complain: what is said by the one that it has is kept.
    """
    faults: dict[str, Fault] = {}
    mistyped: dict[str, Fault] = {}
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        pointer, fields = _locate(model, item["loc"], unknown=item["type"] == "extra_forbidden")
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown key.{did_you_mean(str(item['loc'][-1]), fields)}"
        elif item["type"] == "missing":
            message = "this key is required"
        into = mistyped if item["type"].endswith("_type") or item["type"] == "literal_error" else faults
        into.setdefault(pointer, Fault(pointer, message))
    for pointer, fault in mistyped.items():
        if not any(other.startswith(f"{pointer}/") for other in (*faults, *mistyped)):
            faults.setdefault(pointer, fault)
    return list(faults.values())


def _locate(model: type[BaseModel], loc: tuple[int | str, ...], *, unknown: bool) -> tuple[str, list[str]]:
    """The JSON pointer of a pydantic location (which also names union branches), and the fields beside its last key.

    `unknown`: its last key is none of the model's.
    """
    parts: list[int | str] = []
    here: Any = model
    fields: list[str] = []
    for position, part in enumerate(loc, 1):
        if isinstance(part, int):
            parts.append(part)
        elif here is dict:
            here, fields = None, []
            parts.append(part)
        elif here is not None and _is_key(here, part, unknown=unknown and position == len(loc)):
            fields = list(here.model_fields)
            here = _inner(here.model_fields[part].annotation) if part in here.model_fields else None
            parts.append(part)
    return pointer_of(*parts), fields


def _is_key(model: type[BaseModel], part: str, *, unknown: bool) -> bool:
    """Whether this part of a location is a key, not the name of the union branch that `model` is in."""
    return part in model.model_fields or unknown or model.model_config.get("extra") == "allow"


def _inner(annotation: Any) -> Any:
    """The spec model inside an annotation such as `list[GroupSpec]` or `PretrainedSpec | None`, or `dict`, if there is one."""
    if getattr(annotation, "__origin__", None) is dict:
        return dict
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _inner(argument)) is not None:
            return found
    return None
