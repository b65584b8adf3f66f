"""The loop: `train_fn`, one epoch. A generator: it yields what happens, the caller decides; to stop is to close it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from core.events import AdjustedData, Iteration, RuleData
from core.loss.means import LossFunction
from core.optimizer.groups import learning_rates
from core.optimizer.schedules import set_rates
from core.training import checkpoints
from core.training.divergence import Watch
from core.training.progress import Tally
from core.training.ranks import Batches, Ranks
from core.training.readback import Readback
from core.training.recipe import Recipe

_ALONE = Ranks()


class _Step(NamedTuple):
    step: int
    samples: int
    lr: dict[str, float]


def train_fn(
    epoch: int, loader: Batches, model: nn.Module, optimizer: Optimizer, loss_fn: LossFunction, *, step: int = 0,
    losses: Losses | None = None, pause: Callable[[int], bool] = lambda _: False, ranks: Ranks = _ALONE,
    adjust: Callable[[int], Sequence[AdjustedData | RuleData]] = lambda _: (), recipe: Recipe | None = None,
) -> Generator[Iteration | Tally | AdjustedData | RuleData, None, float]:  # fmt: skip
    """One epoch. Yields each iteration, in order, none left out; returns the mean of the losses, weighted by samples.

    `step` is how many optimizer steps the job has behind it. Raises NonFiniteLossError at a loss that is NaN or infinite, once
    it, and what was on its way behind it, has been yielded; DivergedError where other rules that `losses` watches say so.

    With `losses` of its first batches the epoch goes on after them. Where `pause` is true of the number of completed steps, a
    Tally is yielded: every loss up to there has been, all were finite, and model, optimizer and generators stand right there.
    Before each step `adjust` may change parameter groups (`core.optimizer.control.GroupControl.due`); what it says is yielded.
    Of several `ranks` each takes its share of every batch, and tells the losses of all. The `recipe` says in what precision,
    and how many batches are a step.
    """
    model.train()
    losses = losses or Losses(epoch)
    recipe = recipe or Recipe(model)
    readback: Readback[_Step] = Readback(checkpoints.device_of(model))
    for window in ranks.windows(loader, epoch, losses.tally.steps, recipe.accumulate):
        if adjusted := adjust(step):
            yield from losses.each(readback.drain())
            yield from adjusted
        optimizer.zero_grad(set_to_none=True)
        parts = []
        for part in ranks.losses(recipe, window, loss_fn):
            recipe.backward(part)
            parts.append(part.detach())
        loss = ranks.reduce(model, sum(parts[1:], parts[0]))
        set_rates(optimizer, step)
        recipe.step(optimizer)
        yield from losses.each(readback.push(loss, _Step(step, window.samples, learning_rates(optimizer))))
        step += 1
        if pause(step):
            yield from losses.each(readback.drain())
            if not losses.broken:
                yield losses.tally
        if losses.broken:
            break
    yield from losses.each(readback.drain())
    return losses.mean()


class Losses:
    """The losses of an epoch as they come off the device: summed in float64, and watched. `tally`: those of its first batches.

    By default `watch` looks for those that are not finite.
    """

    def __init__(self, epoch: int, tally: Tally = Tally(), watch: Watch | None = None) -> None:  # noqa: B008 - it is frozen
        self.epoch = epoch
        self.tally = tally
        self._watch = watch or Watch()

    def take(self, step: _Step, loss: float) -> Iteration:
        """The next one."""
        iteration = Iteration(step=step.step, epoch=self.epoch, loss=loss, samples=step.samples, lr=step.lr)
        self.tally = self.tally.plus(loss, step.samples)
        self._watch.hear(iteration)
        return iteration

    def each(self, read: Iterable[tuple[_Step, float]]) -> Iterator[Iteration]:
        """Those that were just read, in order."""
        return (self.take(step, loss) for step, loss in read)

    @property
    def broken(self) -> bool:
        """Whether training ends here."""
        return self._watch.trouble is not None

    def mean(self) -> float:
        """Weighted by samples. Raises DivergedError, NonFiniteLossError."""
        if self._watch.trouble is not None:
            raise self._watch.trouble.error()
        return self.tally.mean_loss
