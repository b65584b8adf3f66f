"""Operations of torchvision.transforms.v2 on a batch in which each image has draws of its own.

torchvision draws one set of parameters per call, which a batch would share. Here a transform of its is the description: its
constructor has checked and filled in the keywords, and what it would draw for each image by itself is taken from `draws`, in
the same ranges; what it then does is done to all images at once, with its arithmetic. A transform without a kernel of its own
works too, image by image: `OneByOne`.

Images are float32 [B, C, H, W] from 0 to 1, draws float64 [B, columns], each uniform from 0 up to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from core.augmentation.colours import blended, colour, per_image, sharpness, shift_hue
from core.augmentation.draws import below, between
from core.augmentation.policies import Policy
from core.augmentation.warps import (
    TRIES,
    Motion,
    along_both_sides,
    blur_weights,
    central,
    inverse_affine,
    rectangles,
    resize_weights,
    sampled,
    span,
    windows,
)

_GRID_MODES = ("nearest", "bilinear")
"""How torchvision samples tensors through a grid."""


class Kernel(Protocol):
    """An operation in batch."""

    @property
    def transform(self) -> Any:
        """The transform of torchvision that it stands for."""
        ...

    @property
    def columns(self) -> int:
        """How many draws an image takes."""
        ...

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """A new batch, or the same one where nothing changes."""
        ...


def kernel_of(transform: Any) -> Kernel | None:
    """How the transform works in batch; None where it has to work image by image."""
    make = _KERNELS.get(type(transform))
    return make(transform) if make else None


@dataclass(frozen=True)
class Always:
    """What draws nothing: torchvision's own code takes a batch as it is."""

    transform: Any
    columns: int = 0

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """All images alike."""
        del draws
        done: Tensor = self.transform(images)
        return done


@dataclass(frozen=True)
class Sometimes:
    """What draws only whether it happens (`p`): torchvision's own code does it to all, and those that drew it take it."""

    transform: Any
    columns: int = 1

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Happens where the draw is below `p`."""
        changed = self.transform.transform(images, self.transform.make_params([images]))
        return torch.where(per_image(draws[:, 0] < self.transform.p), changed, images)


@dataclass(frozen=True)
class Sharpen:
    """RandomAdjustSharpness: happens where the draw is below `p`."""

    transform: Any
    columns: int = 1

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Of 1 or 3 channels."""
        changed = sharpness(images, self.transform.sharpness_factor)
        return torch.where(per_image(draws[:, 0] < self.transform.p), changed, images)


@dataclass(frozen=True)
class Crop:
    """RandomCrop: padded alike, then to each image its own window."""

    transform: Any
    columns: int = 2

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """[B, C, *size]. Raises ValueError where the padded image is smaller than that."""
        given = self.transform
        height, width = given.size
        left, right, top, bottom = given.padding or (0, 0, 0, 0)
        if given.pad_if_needed:
            tall, wide = (
                max(0, side - have)
                for side, have in ((height, images.shape[2] + top + bottom), (width, images.shape[3] + left + right))
            )
            left, right, top, bottom = left + wide, right + wide, top + tall, bottom + tall
        if left or right or top or bottom:
            fill = given.fill if given.fill is None or isinstance(given.fill, int | float) else list(given.fill)
            images = functional.pad(images, [left, top, right, bottom], fill=fill, padding_mode=given.padding_mode)
        spare = images.shape[2] - height, images.shape[3] - width
        if min(spare) < 0:
            raise ValueError(f"a crop of {height} x {width} is larger than the image, {images.shape[2]} x {images.shape[3]}")
        rows = below(draws[:, 0], spare[0] + 1)[:, None] + torch.arange(height, device=images.device)
        columns = below(draws[:, 1], spare[1] + 1)[:, None] + torch.arange(width, device=images.device)
        return windows(images, rows, columns)


@dataclass(frozen=True)
class ResizedCrop:
    """RandomResizedCrop: to each image a window of its own, resized bilinearly, as two products with weights along a side."""

    transform: Any
    columns: int = 2 * TRIES + 2

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """[B, C, *size]."""
        given = self.transform
        size = images.shape[2], images.shape[3]
        high, wide, fits = rectangles(draws, size, given.scale, given.ratio, tall_first=False)
        fallback = central(size, given.ratio)
        height = torch.where(fits, high, fallback[2])
        width = torch.where(fits, wide, fallback[3])
        top = torch.where(fits, below(draws[:, -2], size[0] - height + 1), fallback[0])
        left = torch.where(fits, below(draws[:, -1], size[1] - width + 1), fallback[1])
        rows = resize_weights(top, height, size[0], given.size[0], antialias=bool(given.antialias))
        columns = resize_weights(left, width, size[1], given.size[1], antialias=bool(given.antialias))
        return along_both_sides(images, rows, columns)


@dataclass(frozen=True)
class Affine:
    """RandomAffine and RandomRotation: to each image a grid of its own. `draw` takes the transform, draws and (height, width)."""

    transform: Any
    draw: Callable[[Any, Tensor, tuple[int, int]], Motion]
    columns: int

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """The same size."""
        given, (height, width) = self.transform, images.shape[2:]
        centre = [0.0, 0.0]
        if given.center is not None:
            centre = [one - side * 0.5 for one, side in zip(given.center, (width, height), strict=True)]
        matrices = inverse_affine(centre, self.draw(given, draws, (height, width)))
        return sampled(images, matrices.to(images.dtype), _mode(given), given.fill)


@dataclass(frozen=True)
class Jitter:
    """ColorJitter: to each image its own factors, in its own order.

    Brightness, contrast and saturation are blends with black, with the mean grey and with the grey image: steps of one form.
    Hue is not; it is shifted once, for all images, between those steps that an image has before it and those after it.
    """

    transform: Any
    columns: int = 8

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Of grey images only brightness and contrast matter."""
        given, grey = self.transform, images.shape[1] == 1
        ranges = [given.brightness, given.contrast, None if grey else given.saturation, None if grey else given.hue]
        factors = [None if one is None else between(draws[:, at], *one) for at, one in enumerate(ranges)]
        places = draws[:, 4:].argsort(dim=1).argsort(dim=1)  # of each of the four its place in the image's own order
        blends = [at for at in range(3) if factors[at] is not None]
        hue = factors[3]
        before = places < places[:, 3:] if hue is not None else torch.ones_like(places, dtype=torch.bool)
        images = blended(images, factors, places, blends, before)
        if hue is not None:
            images = blended(shift_hue(images, hue.to(images.dtype)), factors, places, blends, ~before)
        return images


@dataclass(frozen=True)
class Erase:
    """RandomErasing with a given value: to some images a rectangle of their own."""

    transform: Any
    columns: int = 2 * TRIES + 3

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Where no rectangle fits the image stays as it is."""
        given, size = self.transform, (images.shape[2], images.shape[3])
        height, width, fits = rectangles(draws, size, given.scale, given.ratio, tall_first=True)
        fits &= draws[:, -1] < given.p
        rows = span(below(draws[:, -3], size[0] - height + 1), height, size[0])
        columns = span(below(draws[:, -2], size[1] - width + 1), width, size[1])
        inside = (fits[:, None, None] & rows[:, :, None] & columns[:, None, :])[:, None]
        if len(given.value) not in (1, images.shape[1]):
            raise ValueError(f"value has {len(given.value)} numbers, but the images have {images.shape[1]} channels")
        return torch.where(inside, colour(given.value, images), images)


@dataclass(frozen=True)
class Blur:
    """GaussianBlur: to each image its own sigma, along one side and then the other, mirrored at the edges."""

    transform: Any
    columns: int = 1

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """The same size. Raises ValueError where the kernel is larger than what can be mirrored."""
        given = self.transform
        sigma = between(draws[:, 0], *given.sigma)
        across, down = given.kernel_size
        if across // 2 >= images.shape[3] or down // 2 >= images.shape[2]:
            raise ValueError(f"a kernel of {across} x {down} is too large for images of {images.shape[2]} x {images.shape[3]}")
        rows = blur_weights(sigma, down, images.shape[2])
        columns = blur_weights(sigma, across, images.shape[3])
        return along_both_sides(images, rows, columns)


@dataclass(frozen=True)
class OneByOne:
    """Any transform of torchvision, on one image after the other, each with the global generators seeded by its own draw."""

    transform: Any

    def __call__(self, images: Tensor, seeds: list[int]) -> Tensor:
        """Leaves the generators as they were. Raises ValueError where it gives images of several sizes."""
        devices = [images.device.index] if images.device.type == "cuda" else []
        # not torch.manual_seed, which keeps a stack trace each time for a CUDA that nobody has used yet
        generators = [torch.default_generator, *(torch.cuda.default_generators[one] for one in devices)]
        with torch.random.fork_rng(devices=devices):
            done = []
            for image, seed in zip(images, seeds, strict=True):
                for generator in generators:
                    generator.manual_seed(seed)
                done.append(self.transform(image))
        return torch.stack(done)


def _draw_affine(given: Any, draws: Tensor, size: tuple[int, int]) -> Motion:
    nothing = torch.zeros_like(draws[:, 0])
    across = down = nothing
    if given.translate is not None:
        wide, tall = given.translate[0] * size[1], given.translate[1] * size[0]
        across, down = between(draws[:, 1], -wide, wide).round(), between(draws[:, 2], -tall, tall).round()
    scale = between(draws[:, 3], *given.scale) if given.scale is not None else torch.ones_like(nothing)
    shear = given.shear or ()
    return Motion(
        between(draws[:, 0], *given.degrees),
        across,
        down,
        scale,
        between(draws[:, 4], *shear[:2]) if len(shear) >= 2 else nothing,
        between(draws[:, 5], *shear[2:]) if len(shear) == 4 else nothing,
    )


def _draw_rotation(given: Any, draws: Tensor, size: tuple[int, int]) -> Motion:
    del size
    nothing = torch.zeros_like(draws[:, 0])
    angle = between(draws[:, 0], *given.degrees) % 360
    return Motion(-angle, nothing, nothing, torch.ones_like(nothing), nothing, nothing)


def _erasing(transform: Any) -> Kernel | None:
    return None if transform.value is None else Erase(transform)  # noise for each pixel: image by image


def _resized_crop(transform: Any) -> Kernel | None:
    return ResizedCrop(transform) if _mode(transform) == "bilinear" else None


def _affine(transform: Any) -> Kernel | None:
    return Affine(transform, _draw_affine, 6) if _mode(transform) in _GRID_MODES else None


def _rotation(transform: Any) -> Kernel | None:
    """Quarter turns are exact in torchvision, which a grid is not: a fixed angle may be one."""
    low, high = transform.degrees
    return Affine(transform, _draw_rotation, 1) if low < high and _mode(transform) in _GRID_MODES else None


def _policy(transform: Any) -> Kernel | None:
    """One level has no scale in torchvision's tables."""
    if _mode(transform) not in _GRID_MODES or transform.num_magnitude_bins < 2:
        return None
    if isinstance(transform, v2.RandAugment):
        return Policy(transform, transform.num_ops, fixed=True)
    return Policy(transform, 1, fixed=False)


def _mode(transform: Any) -> str:
    return str(getattr(transform.interpolation, "value", transform.interpolation))


_KERNELS: dict[type, Callable[[Any], Kernel | None]] = {
    **dict.fromkeys((v2.CenterCrop, v2.Grayscale, v2.Identity, v2.Pad, v2.Resize, v2.RGB), Always),
    **dict.fromkeys(
        (
            v2.RandomAutocontrast, v2.RandomEqualize, v2.RandomGrayscale, v2.RandomHorizontalFlip, v2.RandomInvert,
            v2.RandomPosterize, v2.RandomSolarize, v2.RandomVerticalFlip,
        ),
        Sometimes,
    ),
    **dict.fromkeys((v2.RandAugment, v2.TrivialAugmentWide), _policy),
    v2.ColorJitter: Jitter,
    v2.GaussianBlur: Blur,
    v2.RandomAdjustSharpness: Sharpen,
    v2.RandomAffine: _affine,
    v2.RandomCrop: Crop,
    v2.RandomErasing: _erasing,
    v2.RandomResizedCrop: _resized_crop,
    v2.RandomRotation: _rotation,
}  # fmt: skip
