"""What a spec's augmentation stands for: the operations behind a preset, and the sizes that were left open."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torchvision.transforms import v2

from core.augmentation.transforms import REFUSED, names
from core.spec import Augmentation
from core.spec.data import Preset


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
