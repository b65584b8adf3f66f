"""The loop: `train_fn`, one epoch; and `fit`, a whole job. Generators: they yield what happens, the caller decides.

To stop is to close the generator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from core import randomness
from core.adjustments import Adjustments
from core.errors import DivergedError
from core.events import AdjustedData, CheckpointData, Data, EpochData, Figure, Firing, Iteration, LogData, RuleData, best, figure
from core.loss.means import LossFunction
from core.optimizer.control import GroupControl
from core.optimizer.groups import learning_rates
from core.optimizer.schedules import set_rates
from core.places import Places
from core.prepare import Prepared, prepare
from core.spec import JobSpec
from core.training import checkpoints
from core.training.divergence import Watch
from core.training.evaluation import Evaluation, evaluate
from core.training.left_out import Listing, agree
from core.training.progress import Pace, Progress, Tally
from core.training.ranks import Batches, Ranks
from core.training.readback import Readback
from core.training.recipe import Recipe
from core.training.recovery import Recovery
from core.training.stopping import stopped

_ALONE = Ranks()
_WHOLE = "the frozen part was thawed, or frozen anew: from here on the model is run whole"


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


def fit(
    spec: JobSpec, places: Places, directory: Path, *, device: torch.device | str = "cpu", ranks: Ranks = _ALONE,
    resume: Sequence[Path] | None = None, publish: Callable[[], None] = lambda: None,
    halts: Callable[[], bool] = lambda: False, clock: Callable[[], float] = time.monotonic,
    adjustments: Adjustments | None = None, fired: Iterable[Firing] = (),
) -> Generator[Iteration | tuple[int, Data], None, None]:  # fmt: skip
    """A whole job: yields each Iteration, and `(step, data)` for every other event.

    In order: the transfer report, the groups, with `resume` a RewoundData and a LogData for each checkpoint that was passed
    over, then per epoch its iterations, an EpochData and an EvaluationData, and a CheckpointData whenever `checkpoint.every`
    (by `clock`, where it is minutes) has one written; before the last one a RuleData, where early stopping ends the job.
    Checkpoints lie in `directory`, each under the number of its step; none is ever removed here.

    `resume` lists checkpoints, newest first; the first sound one is continued, in the middle of its epoch too, and the job goes
    on as if it had never stopped: bit for bit on the CPU, and with `training.deterministic` on a GPU of the same type.
    `publish` is called right before a checkpoint appears; it may wait, or raise. Once `halts()` is true a checkpoint is written
    after the next step, wherever the epoch stands: for the caller to close the generator then, and lose nothing.

    `adjustments` may be asked for at any time, from any thread: the parameter groups change between two steps, and an
    AdjustedData says from what to what. A job that goes on is given those that it has done, and does them again at their steps.

    Where a rule of `training.divergence` acts, a RuleData says so, after a RewoundData where it goes back and an AdjustedData for
    each group whose lr it cuts. `fired` tells a job that goes on which have acted (`core.events.firings`). Raises HaltedError
    where one asks for a person, and DivergedError where one gives up.

    Of several `ranks` (`core.training.ranks.join`) each runs this, with the same arguments but for its device. All yield the
    same; rank 0 writes the checkpoints, asks its `halts` and its `clock`, hears what is asked while it trains, and calls
    `publish`. Where `halts` becomes true the checkpoint is a few steps later, the same one on all; so it is with an adjustment.
    """
    for folder in {directory, *(place.parent for place in resume or ())}:
        checkpoints.clean(folder)
    with randomness.deterministic() if spec.training.deterministic else randomness.tuned():
        job = prepare(spec, places, torch.device(device), ranks)
        yield 0, job.transfer
        yield 0, job.groups
        asked = adjustments or Adjustments()
        control = GroupControl(job.model, job.optimizer, job.grouped, asked if ranks.size == 1 else Adjustments(asked.done))
        recovery = Recovery(job, control, directory, fired)
        listing = Listing(job.train, job.validation)
        keeper = _Keeper(job, control, recovery, listing, asked, directory, Pace(spec.checkpoint.every, clock), publish, halts)
        try:
            progress = yield from recovery.begin(resume)
            keeper.share()
            yield from _at(progress.step, listing.new(progress.step))
            while not keeper.over(progress):
                epoch, begun = progress.epoch, progress.step
                try:
                    progress = yield from _epoch(keeper, progress)
                except DivergedError as error:
                    progress = yield from recovery.recover(error)
                    yield from _at(progress.step, listing.again(progress.step))
                    continue
                if spec.dataset.corrupt == "skip":
                    agree(job.train, ranks.gather)
                    yield from _at(progress.step, (*listing.new(begun), *listing.total(epoch)))
        finally:
            recovery.close()
            job.train.close()
            job.validation.close()


def _at(step: int, events: Iterable[Data]) -> Iterator[tuple[int, Data]]:
    return ((step, event) for event in events)


@dataclass(frozen=True)
class _Keeper:
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
                lambda: checkpoints.save(self.directory, self.job, done, figures, self.publish, generators=generators)
            )
        self.pace.written()
        self.recovery.wrote(done.step, figures)
        return done, CheckpointData(step=done.step, epoch=done.last_epoch, figures=figures, best=leads, **saved._asdict())


def _epoch(keeper: _Keeper, progress: Progress) -> Generator[Iteration | tuple[int, Data], None, Progress]:
    """Train an epoch, or what is left of it, and write the checkpoints; returns how far the job is then."""
    job, epoch, begun = keeper.job, progress.epoch, progress.step
    begin = progress.step - progress.tally.steps
    end = begin + job.steps_per_epoch
    watch = keeper.recovery.watch
    losses = Losses(epoch, progress.tally, watch)
    backbone = job.recipe.backbone
    held = backbone is not None and backbone.holds
    keeper.control.begin(epoch, progress.history)
    start = time.perf_counter() - progress.seconds
    if held and backbone and not backbone.holds:
        held = False
        yield progress.step, LogData(message=_WHOLE)
    for event in train_fn(
        epoch, job.train, job.model, job.optimizer, job.loss, step=progress.step, losses=losses,
        pause=lambda step: step < end and keeper.due(step, epoch_ends=False), ranks=job.ranks, adjust=keeper.recovery.adjust,
        recipe=job.recipe,
    ):  # fmt: skip
        if isinstance(event, Iteration):
            yield event
            continue
        if isinstance(event, AdjustedData | RuleData):
            yield begin + losses.tally.steps, event
            if held and backbone and not backbone.holds:
                held = False
                yield begin + losses.tally.steps, LogData(message=_WHOLE)
            continue
        seconds = time.perf_counter() - start
        progress = replace(progress, step=begin + event.steps, tally=event, seconds=seconds, watched=watch.state)
        yield from _at(progress.step, keeper.listing.new(begun))  # a job that goes on from here knows nothing of them
        progress, written = keeper.save(progress, {"mean_loss": figure(event.mean_loss)})
        yield progress.step, written
        start = time.perf_counter() - seconds
    done = replace(progress, step=end, epoch=epoch + 1, tally=Tally(), seconds=0.0, watched=watch.state)
    return (yield from _validate(keeper, done, figure(losses.mean()), time.perf_counter() - start))


def _evaluated(job: Prepared) -> Evaluation:
    """The validation; once more, where a rank could not read some image of it that the others do not know of."""
    while True:
        found = evaluate(
            job.model,
            job.validation,
            job.loss,
            job.ranks,
            task=job.dataset.task,
            classes=len(job.dataset.classes),
            runs=job.recipe,
        )
        if job.spec.dataset.corrupt != "skip" or not agree(job.validation, job.ranks.gather):
            return found


def _validate(
    keeper: _Keeper, progress: Progress, mean: Figure, seconds: float
) -> Generator[tuple[int, Data], None, Progress]:  # fmt: skip
    """The end of an epoch whose training took `seconds`. Raises DivergedError once it was told, where its loss is no number."""
    job, watch = keeper.job, keeper.recovery.watch
    with job.recipe.final():
        found = _evaluated(job)
    validation = {name: figure(value) for name, value in found.figures.items()}
    progress = replace(progress, history=(*progress.history, validation))
    yield (
        progress.step,
        EpochData(
            epoch=progress.last_epoch,
            mean_loss=mean,
            validation=validation,
            seconds=seconds,
            samples_per_second=job.train.samples / seconds,
        ),
    )
    yield progress.step, found.event(progress.last_epoch, job.validation.kept(0).tolist(), job.dataset.validation.name)
    watch.validated(progress.step, progress.last_epoch, found.figures["loss"])
    if watch.trouble is not None:
        raise watch.trouble.error()
    if (rule := keeper.stops(progress)) is not None:
        yield progress.step, rule
    figures: dict[str, Figure] = {"mean_loss": mean, **validation}
    if keeper.wanted(progress, figures):
        progress, written = keeper.save(progress, figures)
        yield progress.step, written
    return progress
