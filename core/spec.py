"""The job spec: what a person sends. Imports no torch, so that the api and the client can read it.

A named thing (model, loss, optimizer) is `{"name": …}` plus the keywords of that thing's own constructor; here they are only
held, `core.catalog` checks them against the signature. Every default stands in this file and nowhere else.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
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

    name: Name = Field(description="`torchvision:NAME` or `python:MODULE:CLASS`.", examples=["torchvision:resnet50"])


class PretrainedSpec(Part):
    """Where weights come from, and how their names map on to the model's."""

    source: Name = Field(
        description=(
            "`torchvision:NAME/WEIGHTS`, `file:PATH` (below the inputs directory; .safetensors, .pt, .pth), "
            "`job:ID` or `job:ID@STEP`."
        ),
        examples=["torchvision:resnet50/IMAGENET1K_V2", "file:lite0.pth", "job:12"],
    )
    rename: list[tuple[Text, Text]] = Field(
        default=[],
        max_length=1000,
        description="Ordered `[regex, replacement]` pairs, each applied by `re.sub` to every source key in turn.",
    )
    drop: list[Name] = Field(default=[], max_length=1000, description="Globs over the renamed keys: these are not loaded.")
    head: Literal["auto", "keep", "reset"] = Field(
        default="auto",
        description=(
            "`auto` loads it from a job with the same classes, else starts it anew; `keep` must fit; `reset` starts it anew."
        ),
    )
    min_loaded: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="Share of the model's elements outside its head that must come from the source."
    )


class LossSpec(Named):
    """A loss of torch.nn by class name."""

    name: Name = Field(default="CrossEntropyLoss", description="A loss class of `torch.nn`.")


class GroupSpec(BaseModel):
    """One parameter group: which parameters, and their own hyper-parameters (any that the optimizer's groups take)."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Keyword] = Field(init=False)

    name: Name | None = Field(default=None, description="How the API calls this group; `group-N` by default.")
    params: Name | Annotated[list[Name], Field(min_length=1, max_length=10_000)] = Field(
        description=(
            "Globs over parameter names (`*` crosses dots), or `re:…` (full match). "
            "The first group that matches a parameter has it."
        ),
        examples=["fc.*", ["conv1.*", "bn1.*"], "re:layer[34]\\..*"],
    )
    freeze: bool = Field(default=False, description="Do not train these; norms among them stay in eval mode.")

    @property
    def keywords(self) -> dict[str, Any]:
        """The group's own hyper-parameters, unchecked."""
        return dict(self.model_extra or {})

    @property
    def patterns(self) -> list[str]:
        """`params` as a list."""
        return [self.params] if isinstance(self.params, str) else list(self.params)


class OptimizerSpec(Named):
    """An optimizer of torch.optim by class name, its keywords, and its parameter groups."""

    name: Name = Field(default="Adam", description="An optimizer class of `torch.optim`.")
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
        pointer, fields = _locate(model, item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown key.{did_you_mean(str(item['loc'][-1]), fields)}"
        elif item["type"] == "missing":
            message = "this key is required"
        into = mistyped if item["type"].endswith("_type") else faults
        into.setdefault(pointer, Fault(pointer, message))
    for pointer, fault in mistyped.items():
        if not any(other.startswith(f"{pointer}/") for other in (*faults, *mistyped)):
            faults.setdefault(pointer, fault)
    return list(faults.values())


def _locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """The JSON pointer of a pydantic location (which also names union branches), and the fields beside its last key."""
    parts: list[int | str] = []
    here: Any = model
    fields: list[str] = []
    for part in loc:
        if isinstance(part, int):
            parts.append(part)
        elif here is dict:
            here, fields = None, []
            parts.append(part)
        elif here is not None:
            fields = list(here.model_fields)
            here = _inner(here.model_fields[part].annotation) if part in here.model_fields else None
            parts.append(part)
    return pointer_of(*parts), fields


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
