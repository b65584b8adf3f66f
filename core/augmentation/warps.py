"""Where the pixels of a batch come from, when each image has a window, a size, or a grid of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from core.augmentation.colours import colour
from core.augmentation.draws import between

TRIES = 10
"""How often torchvision draws a rectangle anew that does not fit, before it gives up."""


# --- windows -------------------------------------------------------------------------------------------------------------------


def rectangles(
    draws: Tensor, size: tuple[int, int], scale: Any, ratio: Any, *, tall_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(height, width, whether one of the tries fitted) of each image, int64 and bool [B]; 0 where none did.

    An area by `scale`, and a ratio of sides, uniform in its logarithm: RandomErasing's is height to width (`tall_first`), and
    it must leave something; RandomResizedCrop's is width to height, and it may be all.
    """
    area = size[0] * size[1] * between(draws[:, :TRIES], *scale)
    sides = torch.exp(between(draws[:, TRIES : 2 * TRIES], math.log(ratio[0]), math.log(ratio[1])))
    one, other = torch.sqrt(area * sides).round().long(), torch.sqrt(area / sides).round().long()
    high, wide = (one, other) if tall_first else (other, one)
    most = (size[0] - 1, size[1] - 1) if tall_first else size
    least = 0 if tall_first else 1
    fits = (high >= least) & (high <= most[0]) & (wide >= least) & (wide <= most[1])
    first = fits.int().argmax(dim=1, keepdim=True)  # the first of equal ones: the first that fits
    found = fits.gather(1, first).squeeze(1)
    return high.gather(1, first).squeeze(1) * found, wide.gather(1, first).squeeze(1) * found, found


def central(size: tuple[int, int], ratio: Any) -> tuple[int, int, int, int]:
    """(top, left, height, width) that RandomResizedCrop takes where no try fitted."""
    (height, width), (low, high) = size, (min(ratio), max(ratio))
    tall, wide = height, width
    if width / height < low:
        tall = round(width / low)
    elif width / height > high:
        wide = round(height * high)
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def span(begin: Tensor, length: Tensor, size: int) -> Tensor:
    """From `begin` on, so many: bool [B, size]."""
    at = torch.arange(size, device=begin.device)
    return (at >= begin[:, None]) & (at < (begin + length)[:, None])


def windows(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Of image b the pixels at rows[b] x columns[b]: [B, C, h, w]."""
    count, channels = images.shape[:2]
    tall = rows[:, None, :, None].expand(count, channels, rows.shape[1], images.shape[3])
    wide = columns[:, None, None, :].expand(count, channels, rows.shape[1], columns.shape[1])
    return images.gather(2, tall).gather(3, wide)


# --- weights along a side ------------------------------------------------------------------------------------------------------


def resize_weights(begin: Tensor, length: Tensor, size: int, to: int, *, antialias: bool) -> Tensor:
    """How the `to` pixels of a resized window are made of the `size` of a side: float32 [B, to, size], rows that add up to 1.

    `begin` and `length` (int64 [B]) are the window. The filter is a triangle that, with antialias, is as much wider as the window
    shrinks; what lies beyond the window does not count (Pillow's resampling, which torch.nn.functional.interpolate has too).
    """
    step = length / to  # float32, as torch has it
    reach = step.clamp(min=1.0) if antialias else torch.ones_like(step)
    centre = step[:, None] * (torch.arange(to, device=begin.device) + 0.5)
    at = torch.arange(size, device=begin.device) - begin[:, None]
    distance = (at[:, None, :] + 0.5 - centre[:, :, None]) / reach[:, None, None]
    weights = (1 - distance.abs()).clamp(min=0) * ((at >= 0) & (at < length[:, None]))[:, None, :]
    return weights / weights.sum(dim=2, keepdim=True)


def blur_weights(sigma: Tensor, taps: int, size: int) -> Tensor:
    """The same of torchvision's Gaussian kernel, mirrored at the ends without repeating them: float32 [B, size, size]."""
    limit = (taps - 1) / (2.0 * math.sqrt(2.0))
    at = torch.linspace(-limit, limit, taps, device=sigma.device)
    kernel = torch.softmax(-((at / sigma.to(at.dtype)[:, None]) ** 2), dim=1)
    weights = torch.zeros(len(sigma), size, size, device=sigma.device)
    pixels = torch.arange(size, device=sigma.device)
    for tap in range(taps):
        source = (pixels + tap - taps // 2).abs()
        source = torch.where(source >= size, 2 * (size - 1) - source, source)
        weights[:, pixels, source] += kernel[:, tap, None]  # of one tap no pixel has two
    return weights


def along_both_sides(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows[b] @ image @ columns[b] transposed, of each channel."""
    return rows[:, None] @ (images @ columns.transpose(1, 2)[:, None])


# --- grids ---------------------------------------------------------------------------------------------------------------------


class Motion(NamedTuple):
    """How images move, each float64 [B]: angles in degrees, the translation in pixels."""

    angle: Tensor
    across: Tensor
    down: Tensor
    scale: Tensor
    lean_x: Tensor
    lean_y: Tensor


def inverse_affine(centre: Sequence[float] | Sequence[Tensor], motion: Motion) -> Tensor:
    """Where a pixel comes from, as torchvision's _get_inverse_affine_matrix has it for one image: float64 [B, 2, 3].

    `centre` is (x, y) from the middle of the image, for all or for each.
    """
    turn, lean_x, lean_y = motion.angle.deg2rad(), motion.lean_x.deg2rad(), motion.lean_y.deg2rad()
    a = torch.cos(turn - lean_y) / torch.cos(lean_y)
    b = -(a * torch.tan(lean_x) + torch.sin(turn))
    c = torch.sin(turn - lean_y) / torch.cos(lean_y)
    d = torch.cos(turn) - c * torch.tan(lean_x)
    first, second, third, fourth = (one / motion.scale for one in (d, -b, -c, a))
    x, y = centre[0] + motion.across, centre[1] + motion.down
    return torch.stack(
        [first, second, centre[0] - first * x - second * y, third, fourth, centre[1] - third * x - fourth * y], dim=1
    ).view(-1, 2, 3)


def sampled(images: Tensor, matrices: Tensor, mode: str, fill: Any) -> Tensor:
    """Each image through its matrix ([B, 2, 3], as `inverse_affine` has it); what comes from outside is `fill`."""
    height, width = images.shape[2:]
    base = torch.ones(height, width, 3, dtype=images.dtype, device=images.device)
    base[..., 0] = torch.linspace((1.0 - width) * 0.5, (width - 1.0) * 0.5, width, device=images.device)
    base[..., 1] = torch.linspace((1.0 - height) * 0.5, (height - 1.0) * 0.5, height, device=images.device)[:, None]
    scaled = torch.stack([matrices[:, 0] / (0.5 * width), matrices[:, 1] / (0.5 * height)], dim=2)
    grid = base.view(1, height * width, 3) @ scaled
    grid = grid.view(-1, height, width, 2)
    if fill is None or (mode == "nearest" and fill == 0):
        return grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
    covered = torch.cat((images, torch.ones_like(images[:, :1])), dim=1)
    covered = grid_sample(covered, grid, mode=mode, padding_mode="zeros", align_corners=False)
    inner, cover = covered[:, :-1], covered[:, -1:]
    outer = colour(fill, images)
    if mode == "nearest":
        return torch.where(cover < 0.5, outer, inner)
    return (inner - outer) * cover + outer
