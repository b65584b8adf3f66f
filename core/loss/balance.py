"""Class weights that make up for how often each class comes: `"balanced"`, as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BALANCED = "balanced"
_RARE = 100.0


def class_weights(labels: Tensor, classes: Sequence[str]) -> tuple[list[float], list[str]]:
    """For each class N / (C x its samples), over the C that have any, and notes; 0 for one without a sample.

    So scikit-learn's `compute_class_weight("balanced")` has it: the mean over all samples is 1. `labels` are int64 [N].
    """
    counts = torch.bincount(labels, minlength=len(classes)).double()
    there = counts > 0
    weights = torch.where(there, len(labels) / (there.sum() * counts), 0.0)
    notes = [_span("weight", weights.where(there, torch.nan), classes)]
    if bare := (~there).nonzero().flatten().tolist():
        notes.append(f"no training image is {_either([classes[index] for index in bare])}: its weight is 0")
    return _short(weights), notes


def positive_weights(labels: Tensor, classes: Sequence[str]) -> tuple[list[float], list[str]]:
    """For each label how many samples lack it for one that has it, and notes; 1 where all have it or none. Not clipped.

    `labels` are float32 [N, K] of 0 and 1, or the int64 [N] of classes, each of which is then a label.
    """
    if labels.is_floating_point():
        positive = labels.double().sum(dim=0)
    else:
        positive = torch.bincount(labels, minlength=len(classes)).double()
    negative = len(labels) - positive
    told = (positive > 0) & (negative > 0)
    weights = torch.where(told, negative / positive, 1.0)
    notes = [_span("pos_weight", weights, classes)]
    if same := (~told).nonzero().flatten().tolist():
        notes.append(f"all training images have {_either([classes[index] for index in same])}, or none: its pos_weight is 1")
    if float(weights.max()) > _RARE:
        notes.append(f"a pos_weight above {_RARE:g} lets single images rule a step; give pos_weight as a list to cap it")
    return _short(weights), notes


def _span(name: str, weights: Tensor, classes: Sequence[str]) -> str:
    low, high = int(weights.nan_to_num(torch.inf).argmin()), int(weights.nan_to_num(-torch.inf).argmax())
    return (
        f"loss.{name} is balanced: from {float(weights[low]):.3g} for '{classes[low]}' "
        f"to {float(weights[high]):.3g} for '{classes[high]}'"
    )


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names[:5]) + (" …" if len(names) > 5 else "")


def _short(weights: Tensor) -> list[float]:
    """To six digits: a person reads them in the plan."""
    return [float(f"{value:.6g}") for value in weights.tolist()]
