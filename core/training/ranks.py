"""Ranks: the processes that train one job together, each on a device of its own with its share of every batch.

k ranks are one: they take the same steps on the same batches, with the loss and the gradient of the whole batch, so losses and
weights are those of one process, but for the order in which floats are added. `Ranks` is a process alone, for which there is
nothing to agree on; `core.training.distributed.Group` is one of several. The loop knows no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from core.loss.means import LossFunction, counted, summed
from core.models.outputs import loss_of

T = TypeVar("T")


class Batches(Protocol):
    """What the loop needs of a loader: `core.data.batches.Loader` is one."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, targets) of one epoch from batch `start` on, both on the model's device."""
        ...


class Window(NamedTuple):
    """The batches that are one optimizer step, as a rank has them: (images, targets) each. `samples`: over all ranks."""

    batches: list[tuple[Tensor, Tensor]]
    samples: int


class Runs(Protocol):
    """How a model is run: `core.training.recipe.Recipe`."""

    model: nn.Module

    def __call__(self, images: Tensor) -> Any:
        """The outputs of a batch."""
        ...


class Ranks:
    """A process that trains alone."""

    rank = 0
    size = 1

    def adopt(self, model: nn.Module, seed: int) -> None:
        """Make `model`, built alike on all ranks, one that they train together."""

    def windows(self, loader: Batches, epoch: int, start: int = 0, size: int = 1) -> Iterator[Window]:
        """An epoch's batches, `size` of them in each window but the last, from window `start` on."""
        batches = loader.batches(epoch, start * size)
        while window := list(islice(batches, size)):
            yield Window(window, sum(len(targets) for _, targets in window))

    def losses(self, runs: Runs, window: Window, loss_fn: LossFunction) -> Iterator[Tensor]:
        """What each batch adds to the loss of a window. Together, over all ranks, they are the loss of one batch of all samples.

        The next one is begun when it is asked for: when the backward pass of the one before is over.
        """
        loss_fn = self._part(loss_fn, window)
        for images, targets in window.batches:
            yield self._loss(runs, images, targets, loss_fn)

    def reduce(self, model: nn.Module, loss: Tensor) -> Tensor:
        """After the backward pass: the loss of the whole batch, and in each parameter the gradient of it."""
        del model
        return loss

    def whole_batches(self, loader: Batches) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of validation: the batches that this rank sees, each seen by one; with the place of its first sample in the order."""
        first = 0
        for images, targets in loader.batches(0):
            yield first, images, targets
            first += len(targets)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over ranks."""
        return tensor

    def share_buffers(self, model: nn.Module) -> None:
        """Rank 0's buffers are those of all."""

    def agreed(self, wish: bool) -> bool:
        """Between steps: whether rank 0 wishes it. All hear of it after the same step, a few after the wish, without waiting."""
        return wish

    def first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on all ranks."""
        return make()

    def gather(self, mine: T) -> list[T]:
        """What each rank has, in order."""
        return [mine]

    def _loss(self, runs: Runs, images: Tensor, targets: Tensor, loss_fn: LossFunction) -> Tensor:
        return loss_of(runs(images), targets, loss_fn)

    def _part(self, loss_fn: LossFunction, window: Window) -> LossFunction:
        """`loss_fn` as a part of the window's. A mean that is weighted by class is one over the weights of the whole window."""
        if self.size == 1 and len(window.batches) == 1:
            return loss_fn
        if (weighed := counted(loss_fn, torch.cat([targets for _, targets in window.batches]))) is None:
            return lambda logits, targets: len(targets) / window.samples * loss_fn(logits, targets)
        whole, added = self.total(weighed), summed(loss_fn)
        return lambda logits, targets: added(logits, targets) / whole
