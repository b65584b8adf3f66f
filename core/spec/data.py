"""Which images, and how they are read."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from core.spec.values import Name, Part


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
        default=32, description="Samples of a batch, over all GPUs; an optimizer step is one, or `training.accumulate` of them."
    )
    shuffle: bool = Field(default=True, description="Draw a new order each epoch, a function of (seed, epoch).")
    drop_last: bool = Field(default=False, description="Leave the last, ragged batch of an epoch out.")
    workers: Annotated[int, Field(ge=0, le=256)] = Field(
        default=0, description="Processes that read and decode images; 0 reads in the trainer."
    )
