"""When a job writes a checkpoint, and what becomes of it; what its ranks have to agree on between two steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from core import randomness
from core.adjustments import Adjustments
from core.events import CheckpointData, Figure, RuleData, best
from core.optimizer.control import GroupControl
from core.prepare import Prepared
from core.training import checkpoints
from core.training.left_out import Listing
from core.training.progress import Pace, Progress
from core.training.recovery import Recovery
from core.training.stopping import stopped


@dataclass(frozen=True)
class Keeper:
    """A job that trains, and what becomes of its checkpoints."""

    job: Prepared
    control: GroupControl
    recovery: Recovery
    listing: Listing
    asked: Adjustments
    """What rank 0 hears; of several ranks it is not `control`'s own, and `share` brings it to all of them."""
    directory: Path
    pace: Pace
    publish: Callable[[], None]
    halts: Callable[[], bool]

    def due(self, step: int, *, epoch_ends: bool) -> bool:
        """Whether to write one after `step` completed steps."""
        ranks, due = self.job.ranks, self.pace.due(step, epoch_ends=epoch_ends)
        known = epoch_ends or (due and not self.pace.by_clock)  # by all ranks
        if not known and not ranks.agreed(due or self.halts() or (ranks.size > 1 and self.asked.waits)):
            return False
        self.share()
        return ranks.first(lambda: due or self.halts())

    def share(self) -> None:
        """Let all ranks know what rank 0 was asked. They are at the same step here."""
        if self.job.ranks.size > 1:
            for one in self.job.ranks.first(self.asked.take):
                self.control.adjustments.ask(one)

    def leads(self, progress: Progress, figures: dict[str, Figure]) -> bool:
        """Whether these are better than those of every checkpoint before."""
        before = [{"figures": progress.best}] if progress.best is not None else []
        leading = best([*before, {"figures": figures}], self.job.spec.checkpoint.metric)
        return leading is not None and leading["figures"] is figures

    def stops(self, progress: Progress) -> RuleData | None:
        """Why the job ends early, between two epochs: the same on all ranks, and after a resume."""
        return stopped(self.job.spec.training.early_stopping, progress.history, progress.step)

    def over(self, progress: Progress) -> bool:
        """Whether there is nothing left to train."""
        return progress.epoch == self.job.spec.training.epochs or self.stops(progress) is not None

    def wanted(self, progress: Progress, figures: dict[str, Figure]) -> bool:
        """Whether the end of an epoch is worth a checkpoint."""
        due = self.due(progress.step, epoch_ends=True) or self.over(progress)
        return due or (self.job.spec.checkpoint.keep_best > 0 and self.leads(progress, figures))

    def save(self, progress: Progress, figures: dict[str, Figure]) -> tuple[Progress, CheckpointData]:
        """Write one; the progress, which knows what is best now, and the event."""
        leads = self.leads(progress, figures)
        done = replace(progress, best=figures) if leads else progress
        ranks, model = self.job.ranks, self.job.model
        ranks.share_buffers(model)
        generators = ranks.gather(randomness.capture(checkpoints.device_of(model)))
        with self.job.recipe.final():
            saved = ranks.first(
                lambda: checkpoints.save(
                    self.directory, self.job, done, figures, self.publish, generators=generators, returns=self.recovery.returns
                )
            )
        self.pace.written()
        self.recovery.wrote(done.step, figures, self.directory / saved.path)
        return done, CheckpointData(step=done.step, epoch=done.last_epoch, figures=figures, best=leads, **saved._asdict())
