"""Augmentation: what a spec names, as a pipeline that changes each training image in its own way, by (seed, epoch, sample)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from core.augmentation import draws
from core.augmentation.operations import Kernel, OneByOne, kernel_of
from core.augmentation.transforms import reason_of, transform_of
from core.errors import Fault, SpecError
from core.spec import Augmentation
from core.spec.data import Preset

POINTER = "/dataset/augment"

_SLACK = (8, 7)
"""Images that are cropped are held larger by this, as 256 px for 224 (Krizhevsky et al. 2012, and most since)."""


@dataclass(frozen=True)
class Pipeline:
    """Operations in a row, for a training split."""

    kernels: tuple[Kernel | OneByOne, ...]
    seed: int
    held: int
    """The side at which the images come, in pixels."""
    size: int
    """The side at which they leave."""

    def __call__(self, pixels: Tensor, epoch: int, samples: Tensor) -> Tensor:
        """uint8 [B, C, held, held] to float32 [B, C, size, size] from 0 to 1, on the same device.

        `samples` (int64 [B], on the CPU) are the indices of the images in their split.
        """
        if not len(pixels):
            return torch.empty((0, pixels.shape[1], self.size, self.size), device=pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):  # a caller's own, which would round the products of a resize
            for images in self.stages(pixels, epoch, samples):
                done = images
        return done

    def stages(self, pixels: Tensor, epoch: int, samples: Tensor) -> Iterator[Tensor]:
        """The images as they come, and after each operation."""
        images = pixels.to(torch.float32).div_(255)
        yield images
        columns = sum(0 if isinstance(kernel, OneByOne) else kernel.columns for kernel in self.kernels)
        here = samples.to(pixels.device, non_blocking=True)
        drawn = draws.uniform(self.seed, epoch, draws.AUGMENT, here, columns)
        at = 0
        for position, kernel in enumerate(self.kernels):
            if isinstance(kernel, OneByOne):
                seeds = draws.bits(self.seed, epoch, draws.ONE_BY_ONE, samples, position + 1)[:, position]
                images = kernel(images, seeds.tolist())
            else:
                images = kernel(images, drawn[:, at : at + kernel.columns])
                at += kernel.columns
            yield images


def build(
    augment: Preset | Sequence[Augmentation], *, size: int, channels: int, own: tuple[int, int] | None, seed: int
) -> Pipeline | None:
    """The pipeline of operations as `listed` gives them, tried out on two images; None where there is nothing to do.

    Images leave it at `size`; `own` is the (height, width) that all images of the dataset have, where they do. Raises SpecError
    below /dataset/augment, with every fault of a name or a keyword.
    """
    if isinstance(augment, str) or not augment:
        return None
    transforms: list[Any] = []
    faults: list[Fault] = []
    for position, one in enumerate(augment):
        try:
            transforms.append(transform_of(one, f"{POINTER}/{position}"))
        except SpecError as error:
            faults += error.faults
    if faults:
        raise SpecError(*faults)
    kernels = tuple(kernel_of(one) or OneByOne(one) for one in transforms)
    pipeline = Pipeline(kernels, seed, _held(transforms, size, min(own) if own else None), size)
    _try_out(pipeline, augment, channels)
    return pipeline


def notes(augment: Preset | Sequence[Augmentation], pipeline: Pipeline | None) -> Iterator[str]:
    """What a person should know of a pipeline, and of the preset that it may come from."""
    transforms = [kernel.transform for kernel in pipeline.kernels] if pipeline else []
    if augment == "strong" and any(isinstance(one, v2.RandomHorizontalFlip) for one in transforms):
        yield "'strong' mirrors half of the images: where left and right matter (text, digits, signs), list operations instead"
    if slow := [type(one).__name__ for one in transforms if kernel_of(one) is None]:
        yield f"image by image, not in batch, which takes longer: {', '.join(slow)}"


def _held(transforms: Sequence[Any], size: int, own: int | None) -> int:
    """The side to hold images at: larger than the model's where a window of them is taken, but never than they are."""
    crops = any(
        isinstance(one, v2.RandomResizedCrop) or (isinstance(one, v2.RandomCrop) and not one.padding) for one in transforms
    )
    if not crops or (own is not None and own <= size):
        return size
    larger = round(size * _SLACK[0] / _SLACK[1])
    return larger if own is None else min(larger, own)


def _try_out(pipeline: Pipeline, augment: Sequence[Augmentation], channels: int) -> None:
    """Two images, through each operation."""
    pixels = torch.arange(2 * channels * pipeline.held**2).remainder(256).to(torch.uint8)
    stages = pipeline.stages(pixels.view(2, channels, pipeline.held, pipeline.held), 0, torch.arange(2))
    shape = next(stages).shape
    last = 0
    for position, one in enumerate(augment):
        try:
            with warnings.catch_warnings(action="error"):
                images = next(stages)
        except Exception as error:
            message = f"{one.name} cannot work on these images, whose pixels are from 0 to 1: {reason_of(error)}"
            raise SpecError.at(f"{POINTER}/{position}", message) from error
        if images.shape != shape:
            shape, last = images.shape, position
    if shape[2:] != (pipeline.size, pipeline.size) or shape[1] not in (1, 3):
        raise SpecError(
            Fault(
                f"{POINTER}/{last}",
                f"after it images are {shape[2]} x {shape[3]} px, but the model takes {pipeline.size} x {pipeline.size}; "
                f"give it that size, or let another operation bring them there",
            )
        )
