"""Which images, and how they are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag

from core.errors import did_you_mean
from core.spec.values import Name, Named, Part, Task

Preset = Literal["none", "light", "strong"]


class Augmentation(Named):
    """An operation on images by class name, and its keywords."""

    name: Name = Field(description="A class of `torchvision.transforms.v2`.", examples=["RandomHorizontalFlip"])


def _preset(value: Any) -> Any:
    """One message for all that is no list."""
    if value not in get_args(Preset):
        near = did_you_mean(value, get_args(Preset)) if isinstance(value, str) else ""
        raise ValueError(f'send "none", "light", "strong", or a list such as [{{"name": "RandomHorizontalFlip"}}].{near}')
    return value


def _form(value: object) -> str:
    return "list" if isinstance(value, list) else "preset"


class DatasetSpec(Part):
    """Which labelled images, at which size, and how much of them validates."""

    source: Name = Field(
        description="`torchvision:NAME`, `folder:PATH` (below the inputs directory), `upload:ID` or `sklearn:digits`.",
        examples=["torchvision:FashionMNIST", "folder:flowers", "upload:1", "sklearn:digits"],
    )
    labels: Name | None = Field(
        default=None,
        description=(
            "With `folder:` and `upload:`: a CSV file in it that names the images and says their targets; by default "
            "`labels.csv`, or the only one, where it lies there and no class folders do."
        ),
        examples=["labels.csv"],
    )
    task: Task | None = Field(
        default=None,
        description="What the targets are; by default what the dataset says, which a CSV may leave open.",
    )
    image_size: Annotated[int, Field(ge=8, le=2048)] | None = Field(
        default=None,
        description=(
            "Side in pixels; by default that of the pretrained weights, else the dataset's own where all its images "
            "lie in arrays, else (folders, uploads) 224."
        ),
    )
    augment: Annotated[
        Annotated[Preset, BeforeValidator(_preset), Tag("preset")]
        | Annotated[list[Augmentation], Field(max_length=100), Tag("list")],
        Discriminator(_form),
    ] = Field(
        default="none",
        description=(
            "How training images are changed, each in its own way in each epoch: a preset (the plan shows what is in it), or "
            "operations of `torchvision.transforms.v2`, in order, on pixels from 0 to 1."
        ),
        examples=["light", [{"name": "RandomHorizontalFlip", "p": 0.5}, {"name": "RandomCrop", "padding": 4}]],
    )
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1,
        description="Share of the training set held out (stratified, by seed) where there is no split of its own.",
    )
    corrupt: Literal["fail", "skip"] = Field(
        default="fail",
        description="What an image that cannot be read does: end the job by its name, or be left out of every batch, and listed.",
    )


class LoaderSpec(Part):
    """The hyper-parameters of the loader."""

    batch_size: Annotated[int, Field(ge=1, le=65536)] = Field(
        default=32, description="Samples of a batch, over all GPUs; an optimizer step is one, or `training.accumulate` of them."
    )
    shuffle: bool = Field(default=True, description="Draw a new order each epoch, a function of (seed, epoch).")
    drop_last: bool = Field(default=False, description="Leave the last, ragged batch of an epoch out.")
    workers: Annotated[int, Field(ge=0, le=256)] | None = Field(
        default=None, description="Processes that read and decode images; null: as many as help, 0: the trainer reads itself."
    )
