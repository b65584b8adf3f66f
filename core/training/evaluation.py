"""The validation of a model: every sample once, with its figures (`tallies`) and the hardest samples (`hardest`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.data.images import sendable
from core.events import EvaluationData, HardSample, number, shortest
from core.loss.means import LossFunction, counted, summed
from core.models.outputs import logits_of
from core.spec import Task
from core.training.checkpoints import device_of
from core.training.hardest import Hard, Hardest, per_sample
from core.training.ranks import Batches, Ranks
from core.training.tallies import Detail, quiet, tally_of

_ALONE = Ranks()


@dataclass(frozen=True)
class Evaluation:
    """What a validation found. `figures` are those of `core.figures`; `hardest` is None where no loss is known per sample."""

    task: Task
    samples: int
    figures: dict[str, float]
    detail: Detail
    hardest: list[Hard] | None

    def event(self, epoch: int, order: Sequence[int], name: Callable[[int], str]) -> EvaluationData:
        """As the log has it; `order` are the samples' indices as they were run, `name` is that of one by its index."""
        hardest = None if self.hardest is None else [
            HardSample(index=order[one.place], name=sendable(name(order[one.place])), target=one.target,
                       prediction=one.prediction, loss=shortest(one.loss))
            for one in self.hardest
        ]  # fmt: skip
        return EvaluationData(
            epoch=epoch, task=self.task, samples=self.samples, per_class=self.detail.per_class, confused=self.detail.confused,
            confused_left_out=self.detail.left_out, hardest=hardest,
        )  # fmt: skip


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Batches, loss_fn: LossFunction, ranks: Ranks = _ALONE, *,
    task: Task = "multiclass", classes: int | None = None, runs: Callable[[Any], Any] | None = None,
) -> Evaluation:  # fmt: skip
    """Run the model over every sample of `loader`, once, in eval mode.

    `loss` is that of all of them in one batch: the mean over samples, or where classes weigh, the mean by their weights, which
    is NaN where no sample weighs anything.

    Targets are int64 [B], or float32 [B, classes] with one 1 a row, of classes; float32 [B, classes] of several labels, or of
    numbers. `classes` is needed where a rank may see no batch: how many, or of a regression its targets. `runs` is how the model
    is run (`core.training.recipe.Recipe`), if not by calling it.

    Leaves the model in eval mode, and the random state as it was.
    """
    ranks.share_buffers(model)
    model.eval()
    device = device_of(model)
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # of the loss, of what it is a mean over, of samples
    tally = None if classes is None else tally_of(task, classes, device, ranks, loss_fn)
    hardest = Hardest(per_sample(loss_fn))
    for first, images, targets in ranks.whole_batches(loader):
        outputs = logits_of((runs or model)(images))
        totals += _parts(loss_fn, outputs, targets)
        tally = tally or tally_of(task, outputs.shape[1], device, ranks, loss_fn)
        tally.update(outputs, targets)
        hardest.update(first, outputs, targets)
    loss, weight, samples = ranks.total(totals).tolist()
    tally = tally or tally_of(task, 1, device, ranks, loss_fn)
    with quiet():
        measured = {name: number(shortest(value)) for name, value in tally.figures().items()}
        figures = {"loss": loss / weight if weight else math.nan, **measured}
    return Evaluation(task, int(samples), figures, tally.detail(), hardest.told(ranks, tally))


def _parts(loss_fn: LossFunction, outputs: Tensor, targets: Tensor) -> Tensor:
    """What a batch adds to the sum of the loss, to what that is divided by, and to the samples; float64 [3]."""
    weight = counted(loss_fn, targets)
    loss = (loss_fn if weight is None else summed(loss_fn))(outputs, targets).double()
    samples = torch.full_like(loss, len(targets))
    return torch.stack([loss * samples, samples, samples] if weight is None else [loss, weight.double(), samples])
