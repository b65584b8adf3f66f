"""Where a job goes on: from its last checkpoint, or where a rule of `training.divergence` goes back, one before the trouble."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core import randomness
from core.adjustments import RULES, Adjustment
from core.errors import DivergedError
from core.events import AdjustedData, Data, Figure, Firing, LogData, RewoundData, RuleData, retained
from core.optimizer.control import GroupControl
from core.prepare import Prepared
from core.training import checkpoints
from core.training.checkpoints import CheckpointError
from core.training.divergence import HaltedError, Trouble, Watch
from core.training.progress import Progress
from core.training.readback import lag_of

_BEGINNING = ".beginning"
_OVERTAKEN = "what follows came before that"

Story = Generator[tuple[int, Data], None, Progress]
"""Events, and then how far the job is."""


class Recovery:
    """What a job can go back to: the checkpoints that the log keeps, by the rule of `checkpoint`, and its own beginning.

    Never one that this rule has let go, though its files may still lie there: where a job goes back to is a function of its
    losses, whoever deletes files, and when.
    """

    def __init__(self, job: Prepared, control: GroupControl, directory: Path, fired: Iterable[Firing] = ()) -> None:
        """`directory` is where the job writes its checkpoints; `fired` are the rules that have acted before.

        `returns` counts how often this process has gone back.
        """
        self._job, self._control, self._directory = job, control, directory
        self._rules = job.spec.training.divergence
        self._known: dict[int, Path] = {}
        self._told: list[dict[str, Any]] = []
        self.returns = 0
        self.watch = Watch(self._rules, lag_of(checkpoints.device_of(job.model)), fired)

    def begin(self, resume: Sequence[Path] | None) -> Story:
        """Go on from the first sound one of `resume`, which lists the newest first; None: a job that was never begun."""
        if self._rules.rolls_back:
            self._keep_beginning()
        if resume is None:
            self._stand(Progress())
            return Progress()
        progress = yield from self._go_on(resume, anew=True)
        for place in reversed(resume):
            told = checkpoints.told(place)
            if told is not None and told[0] <= progress.step:
                self._remember(*told, place)
        return progress

    def wrote(self, step: int, figures: Mapping[str, Figure], place: Path) -> None:
        """A checkpoint was written."""
        self._remember(step, figures, place)

    def adjust(self, step: int) -> list[AdjustedData | RuleData]:
        """Once `step` steps are completed: what was asked for, and the cut that a rule has decided."""
        done = self._control.due(step)
        self._thaw(done)
        cut = self.watch.due(step)
        return [*done, *(self._cut(cut, step, self.watch.used + 1) if cut else ())]

    def recover(self, error: DivergedError) -> Story:
        """Do what the rule says that has ended the epoch. Raises `error`, where that is to stop, and HaltedError."""
        trouble, used = self.watch.trouble, self.watch.used
        if trouble is None:
            raise error
        missed = self.watch.missed()
        if trouble.action == "stop":
            if missed:
                yield self.watch.heard, missed.missed(_OVERTAKEN)
            yield self.watch.heard, trouble.told()
            raise error
        if trouble.action == "pause":
            step = max((step for step in self._known if step < trouble.first), default=0)
            message = f"paused at step {step}; change what it takes, and resume the job"
            yield step, RewoundData(to_step=step)
            if missed and missed.step >= step:  # else it is ahead again
                yield step, missed.missed(_OVERTAKEN)
            yield step, trouble.told(message)
            raise HaltedError(f"{trouble.message}: {message}")
        before = [self._known[step] for step in sorted(self._known, reverse=True) if step < trouble.first]
        self.returns += 1
        self._control.restart()
        progress = yield from self._go_on([*before, self._directory / _BEGINNING / "0"], anew=False)
        self._control.begin(progress.epoch, progress.history)
        if missed and missed.step >= progress.step:
            yield progress.step, missed.missed(_OVERTAKEN)
        for event in self._cut(trouble, progress.step, used + 1):
            yield progress.step, event
        return progress

    def end(self) -> Iterator[RuleData]:
        """The last step is done, and its loss heard."""
        if missed := self.watch.missed():
            yield missed.missed("the job ends before that")

    def close(self) -> None:
        """The job is over: nobody goes back to its beginning."""
        if self._job.ranks.rank == 0:
            shutil.rmtree(self._directory / _BEGINNING, ignore_errors=True)

    def _keep_beginning(self) -> None:
        """A checkpoint that no log tells of, for this process alone."""
        job = self._job
        generators = job.ranks.gather(randomness.capture(checkpoints.device_of(job.model)))
        place = self._directory / _BEGINNING
        with job.recipe.final():
            job.ranks.first(lambda: checkpoints.save(place, job, Progress(), {}, generators=generators))

    def _remember(self, step: int, figures: Mapping[str, Figure], place: Path) -> None:
        rule = self._job.spec.checkpoint
        self._told = [*self._told, {"step": step, "figures": dict(figures)}]
        kept = set(retained(self._told, rule.keep_last, rule.keep_best, rule.metric))
        self._told = [one for one in self._told if one["step"] in kept]
        self._known = {at: path for at, path in {**self._known, step: place}.items() if at in kept}

    def _go_on(self, candidates: Sequence[Path], *, anew: bool) -> Story:
        """From the first sound one of them; where none is, `anew`, if that is allowed."""
        job = self._job
        progress, damaged = checkpoints.resume(candidates, job.model, job.optimizer, job.recipe, job.ranks.rank)
        if len(damaged) == len(candidates) and not anew:
            raise CheckpointError(f"there is nothing to go back to: {'; '.join(map(str, damaged))}")
        if (step := job.ranks.first(lambda: progress.step)) != progress.step:
            raise CheckpointError(f"rank {job.ranks.rank} cannot read the checkpoint of step {step}, as rank 0 did")
        self._stand(progress)
        yield progress.step, RewoundData(to_step=progress.step)
        for error in damaged:
            yield progress.step, LogData(level="warning", message=f"passed over a checkpoint: {error}")
        return progress

    def _stand(self, progress: Progress) -> None:
        """At a checkpoint that was loaded, or the beginning."""
        self._known = {step: place for step, place in self._known.items() if step <= progress.step}
        self._told = [one for one in self._told if one["step"] <= progress.step]
        self._control.settle(progress.step)
        if self._job.recipe.backbone:
            self._job.recipe.backbone.recall()
        self._thaw(self._control.adjustments.done)
        self.watch.restart(progress.watched, progress.step)

    def _thaw(self, changed: Iterable[AdjustedData | Adjustment]) -> None:
        """Groups that a person freezes or thaws may end what was foreseen of the frozen part: in a job that goes on, too."""
        if self._job.recipe.backbone:
            named = {one.group for one in changed if "freeze" in one.changes}
            groups = [group for group in self._control.groups if not named.isdisjoint((group.name, group.of))]
            self._job.recipe.backbone.changed(member.tensor for group in groups for member in group.members)

    def _cut(self, trouble: Trouble, step: int, nth: int) -> list[AdjustedData | RuleData]:
        """Every lr, from `step` on; the rule's own event comes last, for those who store them together."""
        factor, back = self._rules.lr_factor, trouble.action == "rollback"
        adjusted = self._control.scale(factor, step, RULES) if factor != 1 else []
        if adjusted and back:
            self._control.adjustments.cut(step, factor)
        self.watch.acted(trouble, step, nth)
        done = [f"back to step {step}"] * back + [f"every lr times {factor:g}"] * bool(adjusted)
        return [*adjusted, trouble.told(f"{' and '.join(done)} ({nth} of {self._rules.times})")]
