"""Augmentation: what a spec names, as a pipeline that changes each training image in its own way, by (seed, epoch, sample)."""

from __future__ import annotations

import enum
import inspect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from core.augmentation import draws
from core.augmentation.operations import Kernel, OneByOne, kernel_of
from core.errors import Fault, SpecError, did_you_mean
from core.keywords import check_keywords, keyword_defaults
from core.spec import Augmentation
from core.spec.data import Preset

POINTER = "/dataset/augment"

_BOXES = "works on bounding boxes or key points, which these images do not have"
_TYPES = "converts types; here images are tensors from 0 to 1"
_SIZES = "gives each image a size of its own, but a batch has one; use RandomResizedCrop, or RandomAffine with a scale"
_OTHERS = "takes other transforms, which are not served; list those that you mean, each has its own p"
REFUSED = {
    **dict.fromkeys(("ClampBoundingBoxes", "ClampKeyPoints", "ConvertBoundingBoxFormat", "RandomIoUCrop"), _BOXES),
    **dict.fromkeys(("SanitizeBoundingBoxes", "SanitizeKeyPoints", "SetClampingMode"), _BOXES),
    **dict.fromkeys(("ConvertImageDtype", "PILToTensor", "ToDtype", "ToImage", "ToPILImage", "ToPureTensor", "ToTensor"), _TYPES),
    **dict.fromkeys(("RandomResize", "RandomShortestSize", "RandomZoomOut", "ScaleJitter"), _SIZES),
    **dict.fromkeys(("Compose", "RandomApply", "RandomChoice", "RandomOrder"), _OTHERS),
    **dict.fromkeys(("FiveCrop", "TenCrop"), "makes several images of one"),
    "CutMix": "mixes samples; set training.cutmix",
    "JPEG": "needs an encoder that torchvision has deprecated",
    "Lambda": "takes a function, which JSON cannot carry",
    "LinearTransformation": "takes a matrix as large as an image is, squared",
    "MixUp": "mixes samples; set training.mixup",
    "Normalize": "is done afterwards, with the mean and std of the pretrained weights",
    "UniformTemporalSubsample": "works on videos",
}
"""Operations of torchvision that make no sense here, and why."""
_REFUSED_KEYWORDS = {
    "expand": "it gives each image a size of its own, but a batch has one; leave it out",
    "inplace": "what is done in place is decided here; leave it out",
}
_UNANNOTATED = {("RandomAffine", "degrees"), ("RandomErasing", "value"), ("RandomRotation", "degrees")}
"""Keywords whose annotation does not say what they take: their constructor checks them."""
_NO_COLOUR = "pixels are from 0 to 1: send such a number, or one per channel"
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


def listed(
    augment: Preset | Sequence[Augmentation], size: int, channels: int, mean: Sequence[float]
) -> Preset | list[Augmentation]:
    """The operations behind a preset, and the image size where an operation needs one and was given none; `none` as it is.

    `light` is for any images: a little scale and translation, and mild light. `strong` is for photographs: a crop of a third or
    more of the image (fast.ai's Imagenette recipes), mirrored or not, jitter as timm has it by default, and a rectangle erased
    in a quarter of them (Zhong et al. 2020), with the mean colour. Grey images have no saturation, and are most often
    characters: they are not mirrored.
    """
    if augment == "none":
        return "none"
    if isinstance(augment, str):
        return _light(size, channels) if augment == "light" else _strong(size, channels, mean)
    return [
        one.model_validate({**one.model_dump(), "size": size}) if _lacks_size(one.name) and "size" not in one.keywords else one
        for one in augment
    ]


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


def names() -> list[str]:
    """The operations of torchvision.transforms.v2, those that are refused among them."""
    found = {name: value for name, value in vars(v2).items() if inspect.isclass(value)}
    return sorted(name for name, value in found.items() if issubclass(value, v2.Transform) and value is not v2.Transform)


def keywords_of(name: str) -> dict[str, Any]:
    """The keywords of an operation with their defaults, as JSON has them."""
    found = keyword_defaults(getattr(v2, name), _REFUSED_KEYWORDS)
    return {key: value.value if isinstance(value, enum.Enum) else value for key, value in found.items()}


def transform_of(one: Augmentation, pointer: str) -> Any:
    """The transform of torchvision. Raises SpecError at or below `pointer`."""
    known = [name for name in names() if name not in REFUSED]
    if one.name in REFUSED:
        raise SpecError.at(f"{pointer}/name", f"{one.name} {REFUSED[one.name]}")
    if one.name not in known:
        raise SpecError.at(f"{pointer}/name", f"torchvision.transforms.v2 has no '{one.name}'.{did_you_mean(one.name, known)}")
    target = getattr(v2, one.name)
    checked = {key: value for key, value in one.keywords.items() if (one.name, key) not in _UNANNOTATED}
    faults = check_keywords(target, checked, pointer, refused=_REFUSED_KEYWORDS)
    for key, parameter in inspect.signature(target).parameters.items():
        if key not in one.keywords and parameter.default is parameter.empty:
            faults.append(Fault(f"{pointer}/{key}", f"{one.name} needs this keyword"))
    faults += [Fault(f"{pointer}/{key}", _NO_COLOUR) for key in ("fill", "value") if not _is_colour(one.keywords.get(key))]
    if faults:
        raise SpecError(*faults)
    keywords = {key: v2.AutoAugmentPolicy(value) if key == "policy" else value for key, value in one.keywords.items()}
    try:
        with warnings.catch_warnings(action="error"):
            return target(**keywords)
    except Exception as error:
        raise SpecError.at(pointer, f"{one.name} cannot be made: {_reason(error)}") from error


def notes(augment: Preset | Sequence[Augmentation], pipeline: Pipeline | None) -> Iterator[str]:
    """What a person should know of a pipeline, and of the preset that it may come from."""
    transforms = [kernel.transform for kernel in pipeline.kernels] if pipeline else []
    if augment == "strong" and any(isinstance(one, v2.RandomHorizontalFlip) for one in transforms):
        yield "'strong' mirrors half of the images: where left and right matter (text, digits, signs), list operations instead"
    if slow := [type(one).__name__ for one in transforms if kernel_of(one) is None]:
        yield f"image by image, not in batch, which takes longer: {', '.join(slow)}"


def _light(size: int, channels: int) -> list[Augmentation]:
    return [
        Augmentation(name="RandomResizedCrop", size=size, scale=[0.75, 1.0], ratio=[0.9, 1.11]),
        Augmentation(name="ColorJitter", **_jitter(0.1, channels)),
    ]


def _strong(size: int, channels: int, mean: Sequence[float]) -> list[Augmentation]:
    value = list(mean) if channels == 3 else [sum(mean) / len(mean)]
    return [
        Augmentation(name="RandomResizedCrop", size=size, scale=[0.35, 1.0]),
        *([Augmentation(name="RandomHorizontalFlip", p=0.5)] if channels == 3 else []),
        Augmentation(name="ColorJitter", **_jitter(0.4, channels)),
        Augmentation(name="RandomErasing", p=0.25, value=value),
    ]


def _jitter(amount: float, channels: int) -> dict[str, Any]:
    return {"brightness": amount, "contrast": amount, **({"saturation": amount} if channels == 3 else {})}


def _lacks_size(name: str) -> bool:
    """Whether an operation cannot do without a size."""
    if name in REFUSED or name not in names():
        return False
    size = inspect.signature(getattr(v2, name)).parameters.get("size")
    return size is not None and size.default is size.empty


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
            message = f"{one.name} cannot work on these images, whose pixels are from 0 to 1: {_reason(error)}"
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


def _is_colour(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(one, int | float) and _is_colour(one) for one in value)
    return value is None or value == "random" or (isinstance(value, int | float) and 0 <= value <= 1)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
