"""The loop: `train_fn`, one epoch; `evaluate`; and `fit`, a whole job. Generators: they yield what happens, the caller decides.

To stop is to close the generator.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from core import checkpoints
from core.errors import NonFiniteLossError
from core.events import CheckpointData, Data, EpochData, Figure, Iteration, RewoundData, best, figure
from core.groups import learning_rates, set_train_mode
from core.outputs import LossFunction, logits_of, loss_of
from core.places import Places
from core.plan import Prepared, prepare
from core.readback import Readback
from core.spec import JobSpec


class Batches(Protocol):
    """What the loop needs of a loader: `core.batches.Loader` is one."""

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, targets) of one epoch, both on the model's device."""
        ...


class _Step(NamedTuple):
    step: int
    samples: int
    lr: dict[str, float]


def train_fn(
    epoch: int, loader: Batches, model: nn.Module, optimizer: Optimizer, loss_fn: LossFunction, *, step: int = 0
) -> Generator[Iteration, None, float]:
    """One epoch. Yields each iteration, in order, none left out; returns the mean of the losses, weighted by samples.

    `step` is how many optimizer steps the job has behind it. Raises NonFiniteLossError at a loss that is NaN or infinite, once
    it, and what was on its way behind it, has been yielded.
    """
    set_train_mode(model)
    losses = _Losses(epoch)
    readback: Readback[_Step] = Readback(_device_of(model))
    for images, targets in loader.batches(epoch):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(images), targets, loss_fn)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for due in readback.push(loss, _Step(step, len(targets), learning_rates(optimizer))):
            yield losses.take(*due)
        if losses.broken:
            break
        step += 1
    for due in readback.drain():
        yield losses.take(*due)
    return losses.mean()


class _Losses:
    """The losses of an epoch as they come off the device: summed in float64, and watched."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.broken: Iteration | None = None
        self._sum = 0.0
        self._samples = 0

    def take(self, step: _Step, loss: float) -> Iteration:
        iteration = Iteration(step=step.step, epoch=self.epoch, loss=loss, samples=step.samples, lr=step.lr)
        self._sum += loss * step.samples
        self._samples += step.samples
        if self.broken is None and not math.isfinite(loss):
            self.broken = iteration
        return iteration

    def mean(self) -> float:
        if self.broken is not None:
            raise NonFiniteLossError(f"the loss became {self.broken.loss} at step {self.broken.step}, in epoch {self.epoch + 1}")
        return self._sum / max(1, self._samples)


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
) -> Generator[Iteration | tuple[int, Data], None, None]:  # fmt: skip
    """A whole job: yields each Iteration, and `(step, data)` for every other event.

    In order: the transfer report, the groups, with `resume` a RewoundData, then per epoch its iterations, an EpochData and a
    CheckpointData. A checkpoint per epoch lies in `directory`, under the number of its step; none is ever removed here.

    `resume` lists checkpoints, newest first; the first sound one is continued, and the job goes on as if it had never stopped:
    bit for bit on the CPU. `publish` is called right before a checkpoint appears; it may wait, or raise.
    """
    for folder in {directory, *(place.parent for place in resume or ())}:
        checkpoints.clean(folder)
    job = prepare(spec, places, torch.device(device))
    yield 0, job.transfer
    yield 0, job.groups
    progress = checkpoints.Progress()
    if resume is not None:
        progress = checkpoints.resume(resume, job.model, job.optimizer) or progress
        yield progress.step, RewoundData(to_step=progress.step)
    try:
        for epoch in range(progress.epoch, spec.training.epochs):
            progress = yield from _epoch(epoch, job, progress, directory, publish)
    finally:
        job.train.close()
        job.validation.close()


def _epoch(
    epoch: int, job: Prepared, progress: checkpoints.Progress, directory: Path, publish: Callable[[], None]
) -> Generator[Iteration | tuple[int, Data], None, checkpoints.Progress]:
    """Train one epoch, validate, write the checkpoint; returns how far the job is then."""
    start = time.perf_counter()
    mean = yield from train_fn(epoch, job.train, job.model, job.optimizer, job.loss, step=progress.step)
    seconds = time.perf_counter() - start
    step = progress.step + len(job.train)
    validation = {name: figure(value) for name, value in evaluate(job.model, job.validation, job.loss).items()}
    yield (
        step,
        EpochData(
            epoch=epoch,
            mean_loss=figure(mean),
            validation=validation,
            seconds=seconds,
            samples_per_second=job.train.samples / seconds,
        ),
    )
    figures: dict[str, Figure] = {"mean_loss": figure(mean), **validation}
    before = [{"figures": progress.best}] if progress.best is not None else []
    leading = best([*before, {"figures": figures}], job.spec.checkpoint.metric)
    is_best = leading is not None and leading["figures"] is figures
    done = checkpoints.Progress(step=step, epoch=epoch + 1, best=figures if is_best else progress.best)
    saved = checkpoints.save(directory, job, done, figures, publish)
    yield step, CheckpointData(step=step, epoch=epoch, figures=figures, best=is_best, **saved._asdict())
    return done


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
