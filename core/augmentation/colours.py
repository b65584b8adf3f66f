"""Colours of a batch in which each image is changed by numbers of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torchvision.transforms.v2 import functional


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """RGB [B, 3, H, W] with its hue moved by `shift` ([B], in turns).

    To HSV, and back by f(n) = v - v s max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6, n = 5, 3, 1 for red, green, blue
    (https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative).
    """
    red, green, blue = images.unbind(1)
    low, high = images.aminmax(dim=1)
    span = high - low
    safe = torch.where(span == 0, 1.0, span)  # grey has no hue, and keeps its value whatever is taken for it
    sixth = torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sixth = torch.where(high == red, (green - blue) / safe, sixth) + 6 * shift[:, None, None]
    offsets = torch.arange(5, 0, -2, device=images.device).view(1, 3, 1, 1)
    turned = (offsets + sixth[:, None]).remainder(6)
    return high[:, None] - span[:, None] * torch.minimum(turned, 4 - turned).clamp(0, 1)


def blended(images: Tensor, factors: list[Tensor | None], places: Tensor, blends: list[int], wanted: Tensor) -> Tensor:
    """The steps among `blends` that are `wanted` ([B, 4]) of an image, in its order, which `places` ([B, 4]) has."""
    if not blends:
        return images
    turns = torch.where(wanted, places, torch.full_like(places, 4))  # those that are not wanted come last
    order = torch.stack([turns[:, at] for at in blends], dim=1).argsort(dim=1)
    ratios = torch.stack([torch.where(wanted[:, at], one, 1.0) for at in blends if (one := factors[at]) is not None], dim=1)
    for turn in range(len(blends)):
        now = order[:, turn : turn + 1]
        ratio = ratios.gather(1, now).squeeze(1).to(images.dtype)
        images = blend(images, ratio, now.squeeze(1), blends)
    return images


def blend(images: Tensor, ratio: Tensor, which: Tensor, blends: list[int]) -> Tensor:
    """Ratio * image + (1 - ratio) * other: black, the mean grey or the grey image, as blends[which] is 0, 1 or 2."""
    ratio = per_image(ratio)
    scaled = images * ratio
    if blends != [0]:
        other = functional.rgb_to_grayscale(images) if images.shape[1] == 3 else images
        if 1 in blends:
            other = torch.where(per_image(which == blends.index(1)), other.mean(dim=(1, 2, 3), keepdim=True), other)
        share = 1 - ratio
        if 0 in blends:
            share = share * per_image(which != blends.index(0))
        scaled += other * share
    return scaled.clamp_(0, 1)


def colour(values: Any, images: Tensor) -> Tensor:
    """[1, 1 or C, 1, 1], filled on the device: a copy to it would wait."""
    given = values if isinstance(values, list | tuple) else [values]
    return torch.cat([torch.full((1, 1, 1, 1), float(one), dtype=images.dtype, device=images.device) for one in given], dim=1)


def sharpness(images: Tensor, factor: float) -> Tensor:
    """As torchvision's `adjust_sharpness`, which copies its kernel to the device, and waits: 0 is a blur, 1 the image."""
    channels = images.shape[1]
    if min(images.shape[2:]) <= 2:
        return images
    kernel = torch.full((channels, 1, 3, 3), 1 / 13, dtype=images.dtype, device=images.device)
    kernel[:, :, 1, 1].fill_(5 / 13)
    changed = images.clone()
    inner = changed[..., 1:-1, 1:-1]
    inner.add_(conv2d(images, kernel, groups=channels).sub_(inner), alpha=1 - factor)
    return changed.clamp_(0, 1)


def per_image(values: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)
