"""What a model returned, as logits and as a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.loss.means import LossFunction

# Auxiliary classifiers count with 0.3 in GoogLeNet (Szegedy et al. 2014, section 5), and with 0.4 in Inception v3 as
# PyTorch's fine-tuning tutorial has it. Both return a named tuple while they train, and plain logits in eval mode.
AUXILIARY = {"GoogLeNetOutputs": 0.3, "InceptionOutputs": 0.4}


def logits_of(outputs: Any) -> Tensor:
    """The logits [B, classes]: the output itself, or the `logits` of a named tuple. Raises TypeError for anything else.

    In float32 where they are in 16 bits: a loss wants more digits than those have.
    """
    logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return _full(logits)
    raise TypeError(
        f"the model returned a {type(outputs).__name__}; return the logits as a tensor, or an object that has them as `logits`"
    )


def loss_of(outputs: Any, targets: Tensor, loss: LossFunction) -> Tensor:
    """The loss of the logits, and of torchvision's auxiliary classifiers by their weights."""
    total = loss(logits_of(outputs), targets)
    weight = AUXILIARY.get(type(outputs).__name__)
    if weight is not None:
        for extra in outputs[1:]:
            if extra is not None:
                total = total + weight * loss(_full(extra), targets)
    return total


def _full(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
