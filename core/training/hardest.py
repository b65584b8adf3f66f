"""The validation samples with the highest losses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core.events import Figure
from core.loss.means import LossFunction
from core.training.ranks import Ranks
from core.training.tallies import Tally

MOST_HARD = 16


class Hard(NamedTuple):
    """A sample with a high loss. `target` and `prediction`: a class, the first labels, or the first numbers."""

    place: int
    """In the order of the validation, from 0."""
    target: list[int | Figure]
    prediction: list[int | Figure]
    loss: float


@dataclass
class Hardest:
    """The samples with the highest losses so far, on the device, with their outputs and targets."""

    each: Callable[[Tensor, Tensor], Tensor | None]
    """The loss of each sample, as `per_sample` has it."""
    kept: tuple[Tensor, ...] = field(default=())
    known: bool = True

    def update(self, first: int, outputs: Tensor, targets: Tensor) -> None:
        """A batch whose first sample is the `first` of the order."""
        losses = self.each(outputs, targets)
        if losses is None:
            self.known = False
            return
        indices = torch.arange(first, first + len(targets), device=losses.device)
        batch = (losses, indices, outputs, targets)
        joined = [torch.cat(pair) for pair in zip(self.kept, batch, strict=True)] if self.kept else batch
        chosen = joined[0].topk(min(MOST_HARD, len(joined[0]))).indices
        self.kept = tuple(one[chosen] for one in joined)

    def told(self, ranks: Ranks, tally: Tally) -> list[Hard] | None:
        """Of all ranks, the hardest first."""
        mine: list[Hard] = []
        if self.kept:
            losses, indices, outputs, targets = (one.cpu() for one in self.kept)
            told = tally.told(outputs, targets)
            mine = [Hard(at, *one, loss) for at, one, loss in zip(indices.tolist(), told, losses.tolist(), strict=True)]
        found = ranks.gather((self.known, mine))
        if not all(known for known, _ in found):
            return None
        every = [one for _, some in found for one in some]
        return sorted(every, key=lambda one: (not math.isnan(one.loss), -one.loss, one.place))[:MOST_HARD]


def per_sample(loss_fn: LossFunction) -> Callable[[Tensor, Tensor], Tensor | None]:
    """The same loss as [B], one a sample (the mean over what is left of it); as None where that cannot be had."""
    each = copy.deepcopy(loss_fn) if isinstance(loss_fn, nn.Module) else None
    reducing = [module for module in each.modules() if hasattr(module, "reduction")] if each else []
    for module in reducing:
        module.reduction = "none"  # type: ignore[assignment]  # a plain attribute of torch's losses

    def losses(outputs: Tensor, targets: Tensor) -> Tensor | None:
        if each is None or not reducing:
            return None
        found: Tensor = each(outputs, targets).float()
        if found.shape[:1] != targets.shape[:1]:
            return None
        return found.flatten(1).mean(dim=1) if found.ndim > 1 else found

    return losses
