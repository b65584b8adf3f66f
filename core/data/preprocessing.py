"""How images reach the model: their size, and the numbers by which they are normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """How images reach the model: float32 [B, 3, size, size], (x / 255 - mean) / std."""

    size: int
    mean: Triple
    std: Triple

    @classmethod
    def of(cls, size: int, mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
        """As libraries and files say it: of grey images one value, which is for all three channels."""
        return cls(int(size), _triple(mean), _triple(std))


class Normalise:
    """uint8, or floats from 0 to 1, [B, 1 or 3, S, S] to float32 [B, 3, S, S]; grey becomes three equal channels.

    One fused multiply-add.
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        self._scale = (1 / (255 * std)).view(1, 3, 1, 1).to(torch.float32).to(device)
        self._unit_scale = (1 / std).view(1, 3, 1, 1).to(torch.float32).to(device)
        self._shift = (-mean / std).view(1, 3, 1, 1).to(torch.float32).to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """A new tensor."""
        scale = self._scale if pixels.dtype == torch.uint8 else self._unit_scale
        return torch.addcmul(self._shift, pixels.to(torch.float32), scale)


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = (float(value) for value in ([*values] * 3 if len(values) == 1 else values))
    return red, green, blue
