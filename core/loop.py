"""The loop: `train_fn`, one epoch; `evaluate`; and `fit`, a whole job. Generators: they yield what happens, the caller decides.

To stop is to close the generator.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from core import checkpoints, randomness
from core.adjustments import Adjustments
from core.control import GroupControl
from core.errors import NonFiniteLossError
from core.events import AdjustedData, CheckpointData, Data, EpochData, Figure, Iteration, LogData, RewoundData, best, figure
from core.groups import learning_rates
from core.outputs import LossFunction, logits_of, loss_of
from core.places import Places
from core.plan import Prepared, prepare
from core.progress import Pace, Progress, Tally
from core.readback import Readback
from core.schedules import set_rates
from core.spec import JobSpec


class Batches(Protocol):
    """What the loop needs of a loader: `core.batches.Loader` is one."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, targets) of one epoch from batch `start` on, both on the model's device."""
        ...


class _Step(NamedTuple):
    step: int
    samples: int
    lr: dict[str, float]


def train_fn(
    epoch: int, loader: Batches, model: nn.Module, optimizer: Optimizer, loss_fn: LossFunction, *, step: int = 0,
    losses: Losses | None = None, pause: Callable[[int], bool] = lambda _: False,
    adjust: Callable[[int], Sequence[AdjustedData]] = lambda _: (),
) -> Generator[Iteration | Tally | AdjustedData, None, float]:  # fmt: skip
    """One epoch. Yields each iteration, in order, none left out; returns the mean of the losses, weighted by samples.

    `step` is how many optimizer steps the job has behind it. Raises NonFiniteLossError at a loss that is NaN or infinite, once
    it, and what was on its way behind it, has been yielded.

    With `losses` of its first batches the epoch goes on after them. Where `pause` is true of the number of completed steps, a
    Tally is yielded: every loss up to there has been, all were finite, and model, optimizer and generators stand right there.
    Before each step `adjust` may change parameter groups (`core.control.GroupControl.due`); what it says is yielded.
    """
    model.train()
    losses = losses or Losses(epoch)
    readback: Readback[_Step] = Readback(_device_of(model))
    for images, targets in loader.batches(epoch, losses.tally.batches):
        if adjusted := adjust(step):
            for due in readback.drain():
                yield losses.take(*due)
            yield from adjusted
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(images), targets, loss_fn)
        loss.backward()  # type: ignore[no-untyped-call]
        set_rates(optimizer, step)
        optimizer.step()
        for due in readback.push(loss, _Step(step, len(targets), learning_rates(optimizer))):
            yield losses.take(*due)
        step += 1
        if pause(step):
            for due in readback.drain():
                yield losses.take(*due)
            if not losses.broken:
                yield losses.tally
        if losses.broken:
            break
    for due in readback.drain():
        yield losses.take(*due)
    return losses.mean()


class Losses:
    """The losses of an epoch as they come off the device: summed in float64, and watched. `tally`: those of its first batches."""

    def __init__(self, epoch: int, tally: Tally = Tally()) -> None:  # noqa: B008 - it is frozen
        self.epoch = epoch
        self.tally = tally
        self.broken: Iteration | None = None

    def take(self, step: _Step, loss: float) -> Iteration:
        """The next one."""
        iteration = Iteration(step=step.step, epoch=self.epoch, loss=loss, samples=step.samples, lr=step.lr)
        self.tally = self.tally.plus(loss, step.samples)
        if self.broken is None and not math.isfinite(loss):
            self.broken = iteration
        return iteration

    def mean(self) -> float:
        """Weighted by samples. Raises NonFiniteLossError."""
        if self.broken is not None:
            raise NonFiniteLossError(f"the loss became {self.broken.loss} at step {self.broken.step}, in epoch {self.epoch + 1}")
        return self.tally.mean_loss


@torch.no_grad()
def evaluate(model: nn.Module, loader: Batches, loss_fn: LossFunction) -> dict[str, float]:
    """`loss` (the mean over samples) and `top1` (the share of samples whose highest logit is their class), in eval mode.

    Leaves the model in eval mode, and the random state as it was. The device is read once, at the end.
    """
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=_device_of(model))
    samples = 0
    for images, targets in loader.batches(0):
        logits = logits_of(model(images))
        correct = (logits.argmax(dim=1) == targets).sum()
        totals += torch.stack([loss_fn(logits, targets).double() * len(targets), correct.double()])
        samples += len(targets)
    loss, right = (totals / max(1, samples)).tolist()
    return {"loss": loss, "top1": right}


def fit(
    spec: JobSpec, places: Places, directory: Path, *, device: torch.device | str = "cpu",
    resume: Sequence[Path] | None = None, publish: Callable[[], None] = lambda: None,
    halts: Callable[[], bool] = lambda: False, clock: Callable[[], float] = time.monotonic,
    adjustments: Adjustments | None = None,
) -> Generator[Iteration | tuple[int, Data], None, None]:  # fmt: skip
    """A whole job: yields each Iteration, and `(step, data)` for every other event.

    In order: the transfer report, the groups, with `resume` a RewoundData and a LogData for each checkpoint that was passed
    over, then per epoch its iterations and an EpochData, and a CheckpointData whenever `checkpoint.every` (by `clock`, where it
    is minutes) has one written. Checkpoints lie in `directory`, each under the number of its step; none is ever removed here.

    `resume` lists checkpoints, newest first; the first sound one is continued, in the middle of its epoch too, and the job goes
    on as if it had never stopped: bit for bit on the CPU, and with `training.deterministic` on a GPU of the same type.
    `publish` is called right before a checkpoint appears; it may wait, or raise. Once `halts()` is true a checkpoint is written
    after the next step, wherever the epoch stands: for the caller to close the generator then, and lose nothing.

    `adjustments` may be asked for at any time, from any thread: the parameter groups change between two steps, and an
    AdjustedData says what to what. A job that goes on is given those that it has done, and does them again at their steps.
    """
    for folder in {directory, *(place.parent for place in resume or ())}:
        checkpoints.clean(folder)
    with randomness.deterministic() if spec.training.deterministic else nullcontext():
        job = prepare(spec, places, torch.device(device))
        yield 0, job.transfer
        yield 0, job.groups
        progress = Progress()
        if resume is not None:
            progress, damaged = checkpoints.resume(resume, job.model, job.optimizer)
            yield progress.step, RewoundData(to_step=progress.step)
            for error in damaged:
                yield progress.step, LogData(level="warning", message=f"passed over a checkpoint: {error}")
        control = GroupControl(job.model, job.optimizer, job.grouped, adjustments)
        control.settle(progress.step)
        keeper = _Keeper(job, control, directory, Pace(spec.checkpoint.every, clock), publish, halts)
        try:
            while progress.epoch < spec.training.epochs:
                progress = yield from _epoch(keeper, progress)
        finally:
            job.train.close()
            job.validation.close()


@dataclass(frozen=True)
class _Keeper:
    """A job that trains, and what becomes of its checkpoints."""

    job: Prepared
    control: GroupControl
    directory: Path
    pace: Pace
    publish: Callable[[], None]
    halts: Callable[[], bool]

    def due(self, step: int, *, epoch_ends: bool) -> bool:
        """Whether to write one after `step` completed steps."""
        return self.pace.due(step, epoch_ends=epoch_ends) or self.halts()

    def leads(self, progress: Progress, figures: dict[str, Figure]) -> bool:
        """Whether these are better than those of every checkpoint before."""
        before = [{"figures": progress.best}] if progress.best is not None else []
        leading = best([*before, {"figures": figures}], self.job.spec.checkpoint.metric)
        return leading is not None and leading["figures"] is figures

    def wanted(self, progress: Progress, figures: dict[str, Figure]) -> bool:
        """Whether the end of an epoch is worth a checkpoint."""
        spec = self.job.spec
        due = self.due(progress.step, epoch_ends=True) or progress.epoch == spec.training.epochs
        return due or (spec.checkpoint.keep_best > 0 and self.leads(progress, figures))

    def save(self, progress: Progress, figures: dict[str, Figure]) -> tuple[Progress, CheckpointData]:
        """Write one; the progress, which knows what is best now, and the event."""
        leads = self.leads(progress, figures)
        done = replace(progress, best=figures) if leads else progress
        saved = checkpoints.save(self.directory, self.job, done, figures, self.publish)
        self.pace.written()
        return done, CheckpointData(step=done.step, epoch=done.last_epoch, figures=figures, best=leads, **saved._asdict())


def _epoch(keeper: _Keeper, progress: Progress) -> Generator[Iteration | tuple[int, Data], None, Progress]:
    """Train an epoch, or what is left of it, and write the checkpoints; returns how far the job is then."""
    job, epoch = keeper.job, progress.epoch
    begin = progress.step - progress.tally.batches
    end = begin + len(job.train)
    losses = Losses(epoch, progress.tally)
    keeper.control.begin(epoch, progress.history)
    start = time.perf_counter() - progress.seconds
    for event in train_fn(
        epoch, job.train, job.model, job.optimizer, job.loss, step=progress.step, losses=losses,
        pause=lambda step: step < end and keeper.due(step, epoch_ends=False), adjust=keeper.control.due,
    ):  # fmt: skip
        if isinstance(event, Iteration):
            yield event
            continue
        if isinstance(event, AdjustedData):
            yield event.step, event
            continue
        seconds = time.perf_counter() - start
        progress = replace(progress, step=begin + event.batches, tally=event, seconds=seconds)
        progress, written = keeper.save(progress, {"mean_loss": figure(event.mean_loss)})
        yield progress.step, written
        start = time.perf_counter() - seconds
    done = replace(progress, step=end, epoch=epoch + 1, tally=Tally(), seconds=0.0)
    return (yield from _validate(keeper, done, figure(losses.mean()), time.perf_counter() - start))


def _validate(
    keeper: _Keeper, progress: Progress, mean: Figure, seconds: float
) -> Generator[tuple[int, Data], None, Progress]:  # fmt: skip
    """The end of an epoch whose training took `seconds`."""
    job = keeper.job
    validation = {name: figure(value) for name, value in evaluate(job.model, job.validation, job.loss).items()}
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
    figures: dict[str, Figure] = {"mean_loss": mean, **validation}
    if keeper.wanted(progress, figures):
        progress, written = keeper.save(progress, figures)
        yield progress.step, written
    return progress


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
