"""How far a job is, to the batch; and when it is far enough for a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from core.events import Figure
from core.spec import EveryMinutes, EverySteps
from core.training.divergence import Watched


@dataclass(frozen=True)
class Tally:
    """What an epoch has behind it. `loss_sum`: of its losses, each times its samples, added in float64 in the order of the steps.

    The order of the samples is a function of (seed, epoch), so `steps` says all of where in the data an epoch stands.
    """

    steps: int = 0
    samples: int = 0
    loss_sum: float = 0.0

    def plus(self, loss: float, samples: int) -> Tally:
        """This, and one step more."""
        return Tally(self.steps + 1, self.samples + samples, self.loss_sum + loss * samples)

    @property
    def mean_loss(self) -> float:
        """Weighted by samples."""
        return self.loss_sum / max(1, self.samples)


@dataclass(frozen=True)
class Progress:
    """How far a job is: optimizer steps and epochs completed, the figures of its best checkpoint, and of each epoch's validation.

    `tally` is of the epoch that has begun, and `seconds` the time that it took so far; both are nothing between epochs. `watched`
    is what the rules of `training.divergence` remember.
    """

    step: int = 0
    epoch: int = 0
    best: dict[str, Figure] | None = None
    history: tuple[dict[str, Figure], ...] = ()
    tally: Tally = Tally()
    seconds: float = 0.0
    watched: Watched = field(default_factory=Watched)

    @property
    def last_epoch(self) -> int:
        """The epoch of the last step, from 0."""
        return self.epoch if self.tally.steps else self.epoch - 1


class Pace:
    """Whether a checkpoint is due, by `checkpoint.every`. `clock` is monotonic, in seconds."""

    def __init__(self, every: str | EverySteps | EveryMinutes, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._written_at = clock()
        self.by_clock = isinstance(every, EveryMinutes)
        """Whether `due` depends on the time: what is due here need not be so in another process."""

    def due(self, step: int, *, epoch_ends: bool) -> bool:
        """After `step` completed steps. Each N steps is a function of the step alone: a resumed job writes the same ones."""
        if isinstance(self._every, EverySteps):
            return step % self._every.steps == 0
        if isinstance(self._every, EveryMinutes):
            return self._clock() - self._written_at >= 60 * self._every.minutes
        return epoch_ends

    def written(self) -> None:
        """One was written just now."""
        self._written_at = self._clock()
