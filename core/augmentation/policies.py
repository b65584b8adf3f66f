"""TrivialAugmentWide and RandAugment in batch: each image draws an operation of fourteen, and its strength.

All fourteen are done to all images in a few passes, for those that share one form share a pass, and each image takes its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from core.augmentation.colours import blend, per_image, sharpness
from core.augmentation.draws import below
from core.augmentation.warps import Motion, inverse_affine, sampled

OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness",
    "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
"""In the order of torchvision's tables, which a draw goes by."""
_BLENDS = ("Brightness", "Contrast", "Color")
_COLUMNS = 3  # which operation, how strong, which way


@dataclass(frozen=True)
class Strengths:
    """The strongest of each operation: `translate` in pixels (x, y), `rotate` in degrees, `bits` that posterizing takes away."""

    shear: float
    translate: tuple[float, float]
    rotate: float
    colour: float
    bits: int


@dataclass(frozen=True)
class Policy:
    """One of the two: `turns` operations after each other, of a drawn strength, or of the transform's own where `fixed`."""

    transform: Any
    turns: int
    fixed: bool

    @property
    def columns(self) -> int:
        """Three for each turn."""
        return _COLUMNS * self.turns

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """The same size."""
        for turn in range(self.turns):
            images = self._turn(images, draws[:, _COLUMNS * turn :])
        return images

    def _turn(self, images: Tensor, draws: Tensor) -> Tensor:
        kind = below(draws[:, 0], len(OPERATIONS))
        bins = self.transform.num_magnitude_bins
        level = torch.full_like(kind, self.transform.magnitude) if self.fixed else below(draws[:, 1], bins)
        sign = torch.where(draws[:, 2] <= 0.5, -1.0, 1.0)
        most = _randaugment(images) if self.fixed else _WIDE
        drawn = _Drawn(kind, level, sign, bins)
        images = self._moved(images, drawn, most)
        images = _recoloured(images, drawn, most)
        return _revalued(images, drawn, most)

    def _moved(self, images: Tensor, drawn: _Drawn, most: Strengths) -> Tensor:
        """Shears about the corner, translations, rotations about the middle."""
        nothing = torch.zeros_like(drawn.sign)
        shear = torch.atan(drawn.strength(most.shear)).rad2deg()
        shears = drawn.among("ShearX", "ShearY")
        centre = [torch.where(shears, -side * 0.5, nothing) for side in (images.shape[3], images.shape[2])]
        motion = Motion(
            angle=torch.where(drawn.among("Rotate"), -(drawn.strength(most.rotate) % 360), nothing),
            across=torch.where(drawn.among("TranslateX"), drawn.strength(most.translate[0]).trunc(), nothing),
            down=torch.where(drawn.among("TranslateY"), drawn.strength(most.translate[1]).trunc(), nothing),
            scale=torch.ones_like(nothing),
            lean_x=torch.where(drawn.among("ShearX"), shear, nothing),
            lean_y=torch.where(drawn.among("ShearY"), shear, nothing),
        )
        given = self.transform
        mode = str(getattr(given.interpolation, "value", given.interpolation))
        moved = sampled(images, inverse_affine(centre, motion).to(images.dtype), mode, given.fill)
        return torch.where(per_image(drawn.among("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")), moved, images)


@dataclass(frozen=True)
class _Drawn:
    """For each image the operation, its level, and its sign; there are `bins` levels."""

    kind: Tensor
    level: Tensor
    sign: Tensor
    bins: int

    def among(self, *names: str) -> Tensor:
        """Whose operation is one of these: bool [B]."""
        found = self.kind == OPERATIONS.index(names[0])
        for name in names[1:]:
            found = found | (self.kind == OPERATIONS.index(name))
        return found

    def strength(self, most: float) -> Tensor:
        """Its level of an operation that goes both ways, from 0 to `most` in either: float64 [B]."""
        return self.at(torch.linspace(0.0, most, self.bins, device=self.kind.device)).double() * self.sign

    def at(self, table: Tensor) -> Tensor:
        """Its level's entry in a table of all levels."""
        return table[self.level]


_WIDE = Strengths(shear=0.99, translate=(32.0, 32.0), rotate=135.0, colour=0.99, bits=6)
"""Of TrivialAugmentWide (Mueller, Hutter 2021, table 1)."""


def _randaugment(images: Tensor) -> Strengths:
    """Of RandAugment (Cubuk et al. 2020), whose translations go by the size."""
    translate = 150.0 / 331.0 * images.shape[3], 150.0 / 331.0 * images.shape[2]
    return Strengths(shear=0.3, translate=translate, rotate=30.0, colour=0.9, bits=4)


def _recoloured(images: Tensor, drawn: _Drawn, most: Strengths) -> Tensor:
    """Brightness, contrast, saturation and sharpness: blends with something duller, or away from it."""
    ratio = 1 + drawn.strength(most.colour)
    served = drawn.among(*_BLENDS) if images.shape[1] == 3 else drawn.among("Brightness", "Contrast")
    which = drawn.among("Contrast").long() + 2 * drawn.among("Color")
    factor = torch.where(served, ratio, 1.0).to(images.dtype)
    images = torch.where(per_image(served), blend(images, factor, which, [0, 1, 2]), images)
    soft = sharpness(images, 0.0)
    sharpened = (soft + (images - soft) * per_image(ratio.to(images.dtype))).clamp(0, 1)
    return torch.where(per_image(drawn.among("Sharpness")), sharpened, images)


def _revalued(images: Tensor, drawn: _Drawn, most: Strengths) -> Tensor:
    """What maps each value to another: posterize, solarize, autocontrast, equalize."""
    device, bins = images.device, drawn.bins
    bits = (8 - torch.arange(bins, device=device) / ((bins - 1) / most.bits)).round()
    levels = per_image(2 ** drawn.at(bits))
    posterized = (images * levels).floor().clamp(min=0).minimum(levels - 1) / levels
    threshold = per_image(drawn.at(torch.linspace(1.0, 0.0, bins, device=device)))
    for name, changed in (
        ("Posterize", posterized),
        ("Solarize", torch.where(images >= threshold, 1 - images, images)),
        ("AutoContrast", functional.autocontrast(images)),
        ("Equalize", functional.equalize(images)),
    ):
        images = torch.where(per_image(drawn.among(name)), changed, images)
    return images
