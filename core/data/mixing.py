"""Mixup and CutMix: a batch in which each sample is mixed with the one at the mirrored position, i with B - 1 - i.

What a sample is mixed by is a function of (seed, epoch, sample), so several ranks mix as one, and a resumed job as before. The
pairs, and shares for each sample rather than for the batch, are as timm has them (`timm.data.Mixup`, mode `elem`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.augmentation import draws
from core.data.datasets import Dataset
from core.data.targets import Converting, as_targets
from core.errors import Fault, SpecError
from core.spec import TrainingSpec

_COLUMNS = 5  # which of the two; two for the share; the middle of the rectangle

Batch = tuple[Tensor, Tensor]
"""Images and their targets."""


@dataclass(frozen=True)
class Mixing:
    """How the samples of a batch are mixed. With both, each sample draws one of them."""

    mixup: float | None
    cutmix: float | None
    classes: int
    seed: int

    def __call__(self, batch: Batch, others: Batch, epoch: int, samples: Tensor) -> Batch:
        """The batch of `samples` (indices, int64 [B]), each mixed with its other one; all on one device.

        Images are float32 [B, C, H, W], and targets become dense: class indices float32 [B, classes], in which a row adds up
        to 1; those that are floats already (several labels, numbers) are blended as they are.
        """
        drawn = draws.uniform(self.seed, epoch, draws.MIX, samples, _COLUMNS)
        kept, share = self._shares(drawn, *batch[0].shape[2:])
        mine, theirs = (as_targets(targets, "dense", self.classes) for _, targets in (batch, others))
        weight = share.to(mine.dtype).view(-1, *[1] * (mine.ndim - 1))
        return torch.lerp(others[0], batch[0], kept.to(batch[0].dtype)), torch.lerp(theirs, mine, weight)

    def _shares(self, drawn: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """How much a sample keeps of each pixel, [B, 1, H, W] or [B, 1, 1, 1], and of its targets, [B]."""
        if self.cutmix is None:
            share = beta(self.mixup or 1.0, drawn[:, 1:3])
            return share.view(-1, 1, 1, 1), share
        kept = rectangle(beta(self.cutmix, drawn[:, 1:3]), drawn[:, 3:], height, width).to(drawn.dtype)[:, None]
        if self.mixup is not None:
            blended = beta(self.mixup, drawn[:, 1:3]).view(-1, 1, 1, 1)
            kept = torch.where(drawn[:, :1, None, None] < 0.5, kept, blended)
        return kept, kept.mean(dim=(1, 2, 3))


def of_training(spec: TrainingSpec, dataset: Dataset) -> Mixing | None:
    """What the spec asks for, if anything. Raises SpecError at /training/cutmix where the dataset's targets are numbers."""
    if spec.mixup is None and spec.cutmix is None:
        return None
    if spec.cutmix is not None and dataset.task == "regression":
        raise SpecError.at("/training/cutmix", "the targets are numbers, which do not go by area; mixup blends them")
    return Mixing(spec.mixup, spec.cutmix, len(dataset.classes), spec.seed)


def check_loss(loss: nn.Module, spec: TrainingSpec, dataset: Dataset) -> list[Fault]:
    """Whether the loss takes mixed targets, found by a batch of two; its faults at /training/mixup and /training/cutmix."""
    targets = as_targets(dataset.train.labels[:2], "dense", len(dataset.classes))
    outputs = torch.zeros_like(targets, requires_grad=True)
    try:
        if isinstance(loss, Converting) and loss.form == "lists":
            raise ValueError("it is given lists of labels, in which shares of them are lost")
        value = loss(outputs, targets)
        if value.ndim or not value.requires_grad:
            raise ValueError("it gives no number to train by")
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        name = type(loss.loss if isinstance(loss, Converting) else loss).__name__
        message = f"{name} takes no mixed targets ({reason}); CrossEntropyLoss does"
        return [Fault(f"/training/{key}", message) for key in ("mixup", "cutmix") if getattr(spec, key) is not None]
    return []


def beta(alpha: float, uniforms: Tensor) -> Tensor:
    """Numbers from Beta(alpha, alpha), of two uniform ones each ([B, 2]): float64 [B].

    No try is ever thrown away: T = sqrt(n (U^(-2/n) - 1)) cos(2 pi V) has Student's distribution of n = 2 alpha degrees (Bailey
    1994, Polar generation of random variates with the t-distribution), and (1 + T / sqrt(n + T^2)) / 2 is Beta(n/2, n/2).
    """
    power = uniforms[:, 0] ** (1 / alpha)
    across = torch.cos(2 * math.pi * uniforms[:, 1])
    return 0.5 + 0.5 * across / torch.sqrt(power / (1 - power) + across**2)


def rectangle(share: Tensor, middle: Tensor, height: int, width: int) -> Tensor:
    """False within a rectangle about `middle` ([B, 2], uniform) that has 1 - share of the area: bool [B, height, width].

    What lies beyond the image is cut off, as the paper and torchvision's CutMix have it.
    """
    reach = 0.5 * torch.sqrt(1 - share)
    inside = []
    for at, size in ((0, height), (1, width)):
        centre, half = (middle[:, at] * size).long(), (reach * size).long()
        pixels = torch.arange(size, device=share.device)
        inside.append((pixels >= (centre - half)[:, None]) & (pixels < (centre + half)[:, None]))
    return ~(inside[0][:, :, None] & inside[1][:, None, :])
