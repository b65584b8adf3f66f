"""What the mean of a loss is a mean over: of most its samples, of some what the classes of its samples weigh."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LossFunction = Callable[[Tensor, Tensor], Tensor]


def weights(loss_fn: LossFunction, targets: Tensor) -> Tensor | None:
    """What each of `targets`, int64 [B], counts in the mean of a loss, float32 [B]; None where each counts 1.

    It is what torch.nn.CrossEntropyLoss and NLLLoss have as `weight`, and 0 of the class that is their `ignore_index`.
    """
    if not isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss) or (loss_fn.weight is None and loss_fn.ignore_index < 0):
        return None
    if targets.is_floating_point():  # of probabilities torch's mean is one over the samples
        return None
    each = torch.ones_like(targets, dtype=torch.float32) if loss_fn.weight is None else loss_fn.weight[targets]
    return each.masked_fill(targets == loss_fn.ignore_index, 0.0)


def counted(loss_fn: LossFunction, targets: Tensor) -> Tensor | None:
    """What the mean over `targets` is divided by, float32 []; None where that is their number.

    It is 0 where no sample weighs anything: such a mean is no number.
    """
    each = weights(loss_fn, targets)
    return None if each is None else each.sum()


def summed(loss_fn: LossFunction) -> LossFunction:
    """The same loss of torch.nn as a sum: means of parts cannot be added, these can."""
    whole: Any = copy.copy(loss_fn)
    whole.reduction = "sum"
    added: LossFunction = whole
    return added
