"""A whole job: `fit`. A generator, as `train_fn` is: it yields what happens, the caller decides; to stop is to close it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from core import heap, randomness
from core.adjustments import Adjustments
from core.errors import DivergedError
from core.events import AdjustedData, Data, EpochData, Figure, Firing, Iteration, LogData, RuleData, figure
from core.optimizer.control import GroupControl
from core.places import Places
from core.prepare import Prepared, prepare
from core.spec import JobSpec
from core.training import checkpoints
from core.training.evaluation import Evaluation, evaluate
from core.training.keeper import Keeper
from core.training.left_out import Listing, agree
from core.training.loop import Losses, train_fn
from core.training.progress import Pace, Progress, Tally
from core.training.ranks import Ranks
from core.training.recovery import Recovery

_ALONE = Ranks()
_WHOLE = "the frozen part was thawed, or frozen anew: from here on the model is run whole"


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
    Checkpoints lie in `directory`, each named by its step (`core.training.checkpoints`); none is ever removed here.

    `resume` lists checkpoints, newest first; the first sound one is continued, in the middle of its epoch too, and the job goes
    on as if it had never stopped: bit for bit on the CPU, and with `training.deterministic` on a GPU of the same type.
    `publish` is called right before a checkpoint appears; it may wait, or raise. Once `halts()` is true a checkpoint is written
    after the next step, wherever the epoch stands: for the caller to close the generator then, and lose nothing.

    `adjustments` may be asked for at any time, from any thread: the parameter groups change between two steps, and an
    AdjustedData says from what to what. A job that goes on is given those that it has done, and does them again at their steps.

    Where a rule of `training.divergence` acts, a RuleData says so, after a RewoundData where it goes back and an AdjustedData for
    each group whose lr it cuts. `fired` tells a job that goes on which have acted (`core.events.firings`). Raises HaltedError
    where one asks for a person, and DivergedError where one gives up.

    Of several `ranks` (`core.training.distributed.join`) each runs this, with the same arguments but for its device. All yield
    the same; rank 0 writes the checkpoints, asks its `halts` and its `clock`, hears what is asked while it trains, and calls
    `publish`. Where `halts` becomes true the checkpoint is a few steps later, the same one on all; so it is with an adjustment.
    """
    for folder in {directory, *(place.parent for place in resume or ())}:
        checkpoints.clean(folder)
    device = torch.device(device)
    with (
        randomness.deterministic() if spec.training.deterministic else randomness.tuned(),
        heap.kept() if device.type == "cpu" else nullcontext(),
    ):
        job = prepare(spec, places, device, ranks)
        yield 0, job.transfer
        yield 0, job.groups
        asked = adjustments or Adjustments()
        control = GroupControl(job.model, job.optimizer, job.grouped, asked if ranks.size == 1 else Adjustments(asked.done))
        recovery = Recovery(job, control, directory, fired)
        listing = Listing(job.train, job.validation)
        keeper = Keeper(job, control, recovery, listing, asked, directory, Pace(spec.checkpoint.every, clock), publish, halts)
        try:
            progress = yield from recovery.begin(resume)
            keeper.share()
            yield from _at(progress.step, listing.new(progress.step))
            while not keeper.over(progress):
                try:
                    progress = yield from _epoch(keeper, progress)
                except DivergedError as error:
                    progress = yield from recovery.recover(error)
                    yield from _at(progress.step, listing.again(progress.step))
        finally:
            recovery.close()
            job.train.close()
            job.validation.close()


def _epoch(keeper: Keeper, progress: Progress) -> Generator[Iteration | tuple[int, Data], None, Progress]:
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
    return (yield from _validate(keeper, done, figure(losses.mean()), time.perf_counter() - start, begun))


def _evaluated(job: Prepared) -> Evaluation:
    """The validation; once more, where some image of it could no longer be read: no rank knew that when it was shared out."""
    while True:
        known = len(job.validation.corrupt)
        found = evaluate(
            job.model,
            job.validation,
            job.loss,
            job.ranks,
            task=job.dataset.task,
            classes=len(job.dataset.classes),
            runs=job.recipe,
        )
        if job.spec.dataset.corrupt == "skip":
            agree(job.validation, job.ranks.gather)
        if len(job.validation.corrupt) == known:
            return found


def _validate(
    keeper: Keeper, progress: Progress, mean: Figure, seconds: float, begun: int
) -> Generator[tuple[int, Data], None, Progress]:
    """The end of an epoch whose training took `seconds`, from step `begun` on.

    Raises DivergedError once it was told, where its loss is no number. The checkpoint comes last: a pause may end the job there.
    """
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
    if job.spec.dataset.corrupt == "skip":
        agree(job.train, job.ranks.gather)
        yield from _at(progress.step, (*keeper.listing.new(begun), *keeper.listing.total(progress.last_epoch)))
    if keeper.over(progress):
        yield from _at(progress.step, keeper.recovery.end())
    if (rule := keeper.stops(progress)) is not None:
        yield progress.step, rule
    figures: dict[str, Figure] = {"mean_loss": mean, **validation}
    if keeper.wanted(progress, figures):
        progress, written = keeper.save(progress, figures)
        yield progress.step, written
    return progress


def _at(step: int, events: Iterable[Data]) -> Iterator[tuple[int, Data]]:
    return ((step, event) for event in events)
