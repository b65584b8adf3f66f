"""The validation of a model: its figures by task, what holds of each class, what is taken for what, the hardest samples.

Everything is kept on the device and read once, at the end; over several ranks it is what one would find. Figures are
torchmetrics'. The confusion matrix is not: that one has a dense [classes, classes] tensor, filled by comparing each batch with
every cell of it where algorithms must be deterministic, which for 1,000 classes takes gigabytes. Here it is counted from the
pairs that there were.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

from core.data.images import sendable
from core.data.targets import predictions as predicted
from core.events import ClassColumns, EvaluationData, Figure, HardSample, shortest
from core.figures import TOP
from core.loss.means import LossFunction, counted, summed
from core.models.outputs import logits_of
from core.spec import Task
from core.training.checkpoints import device_of
from core.training.ranks import Batches, Ranks

MOST_CONFUSED = 1000
"""Cells of the confusion matrix that an event carries: all of up to 32 classes."""
MOST_HARD = 16
_MOST_NUMBERS = 20
"""Labels, or numbers, of a hard sample that are told."""
_EXACT = 2.0**20
_ALONE = Ranks()

Confusion = tuple[int, int, int]


class Hard(NamedTuple):
    """A sample with a high loss. `target` and `prediction`: a class, the first labels, or the first numbers."""

    place: int
    """In the order of the validation, from 0."""
    target: list[int | Figure]
    prediction: list[int | Figure]
    loss: float


@dataclass(frozen=True)
class Detail:
    """What a task tells beside its figures. `confused`: (class, prediction, samples), the most frequent first."""

    per_class: ClassColumns
    confused: list[Confusion] | None = None
    left_out: int = 0
    """Samples in the confusions beyond MOST_CONFUSED."""


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
    tally = None if classes is None else _tally(task, classes, device, ranks, loss_fn)
    hardest = _Hardest(per_sample(loss_fn))
    for first, images, targets in ranks.whole_batches(loader):
        outputs = logits_of((runs or model)(images))
        totals += _parts(loss_fn, outputs, targets)
        tally = tally or _tally(task, outputs.shape[1], device, ranks, loss_fn)
        tally.update(outputs, targets)
        hardest.update(first, outputs, targets)
    loss, weight, samples = ranks.total(totals).tolist()
    tally = tally or _tally(task, 1, device, ranks, loss_fn)
    with _quiet():
        figures = {"loss": loss / weight if weight else math.nan, **tally.figures()}
    return Evaluation(task, int(samples), figures, tally.detail(), hardest.told(ranks, tally))


def _parts(loss_fn: LossFunction, outputs: Tensor, targets: Tensor) -> Tensor:
    """What a batch adds to the sum of the loss, to what that is divided by, and to the samples; float64 [3]."""
    weight = counted(loss_fn, targets)
    loss = (loss_fn if weight is None else summed(loss_fn))(outputs, targets).double()
    samples = torch.full_like(loss, len(targets))
    return torch.stack([loss * samples, samples, samples] if weight is None else [loss, weight.double(), samples])


def per_sample(loss_fn: LossFunction) -> Callable[[Tensor, Tensor], Tensor | None]:
    """The same loss as [B], one a sample (the mean over what is left of it); as None where that cannot be had."""
    each = copy.deepcopy(loss_fn) if isinstance(loss_fn, nn.Module) else None
    reducing = [module for module in each.modules() if hasattr(module, "reduction")] if each else []
    for module in reducing:
        module.reduction = "none"  # type: ignore[assignment]  # a plain attribute of torch's losses

    def losses(outputs: Tensor, targets: Tensor) -> Tensor | None:
        if each is None or not reducing:
            return None
        found: Tensor = each(outputs, targets).float()
        if found.shape[:1] != targets.shape[:1]:
            return None
        return found.flatten(1).mean(dim=1) if found.ndim > 1 else found

    return losses


class _Tally(Protocol):
    """What a task counts."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """One batch."""

    def figures(self) -> dict[str, float]:
        """Of all ranks, but for the loss. A collective call, as `detail`."""

    def detail(self) -> Detail:
        """Of all ranks."""

    def told(self, outputs: Tensor, targets: Tensor) -> Iterator[tuple[list[int | Figure], list[int | Figure]]]:
        """Of each sample, on the CPU: its target and its prediction."""


def _tally(task: Task, classes: int, device: torch.device, ranks: Ranks, loss_fn: LossFunction) -> _Tally:
    if task == "regression":
        return _Numbers(classes, device, ranks, loss_fn)
    if task == "multilabel":
        probabilities = isinstance(loss_fn, nn.Module) and any(isinstance(one, nn.BCELoss) for one in loss_fn.modules())
        return _Labels(classes, device, ranks, threshold=0.5 if probabilities else 0.0)
    return _Classes(classes, device, ranks)


def _over(ranks: Ranks, metric: Metric) -> Tensor:
    """What it is over the samples of all ranks.

    It is not left to torchmetrics to bring them together: that waits for ever, or dies, where a rank saw no batch.
    """
    if ranks.size > 1:
        seen = [one for one in ranks.gather(metric.cpu() if metric.update_called else None) if one is not None]
        metric, *others = seen
        for other in others:
            metric.merge_state(other)
    found: Tensor = metric.compute()
    return found


class _Classes:
    """One class a sample."""

    def __init__(self, classes: int, device: torch.device, ranks: Ranks) -> None:
        self._classes, self._device, self._ranks = classes, device, ranks
        tops = {"top1": 1, **({"top5": TOP} if classes > TOP else {})}
        self._metrics = {
            name: MulticlassAccuracy(classes, top_k=top, average="micro", validate_args=False, sync_on_compute=False).to(device)
            for name, top in tops.items()
        }
        self._pairs: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        targets = _class_of(targets)
        for metric in self._metrics.values():
            metric.update(outputs, targets)
        self._pairs.append(targets * self._classes + outputs.argmax(dim=1))

    def figures(self) -> dict[str, float]:
        return {name: _over(self._ranks, metric).item() for name, metric in self._metrics.items()}

    def detail(self) -> Detail:
        pairs = torch.cat([*self._pairs, torch.empty(0, dtype=torch.int64, device=self._device)])
        targets, predictions = pairs // self._classes, pairs % self._classes
        right = targets == predictions
        counted = [torch.bincount(one, minlength=self._classes) for one in (targets, predictions, targets[right])]
        support, predicted, correct = self._ranks.total(torch.stack(counted)).tolist()
        wrong = torch.cat(self._ranks.gather(pairs[~right].cpu()))
        codes, samples = torch.unique(wrong, return_counts=True)
        order = samples.argsort(descending=True, stable=True)
        told, left = order[:MOST_CONFUSED], order[MOST_CONFUSED:]
        confused = [
            (code // self._classes, code % self._classes, count)
            for code, count in zip(codes[told].tolist(), samples[told].tolist(), strict=True)
        ]
        columns = ClassColumns(support=support, predicted=predicted, correct=correct)
        return Detail(columns, confused, int(samples[left].sum()))

    def told(self, outputs: Tensor, targets: Tensor) -> Iterator[tuple[list[int | Figure], list[int | Figure]]]:
        for target, prediction in zip(_class_of(targets).tolist(), outputs.argmax(dim=1).tolist(), strict=True):
            yield [target], [prediction]


class _Labels:
    """Any of several labels a sample. `threshold`: the output above which a label is predicted."""

    def __init__(self, classes: int, device: torch.device, ranks: Ranks, *, threshold: float) -> None:
        self._ranks, self._threshold = ranks, threshold
        self._counts = torch.zeros((3, classes), dtype=torch.int64, device=device)
        self._precision = MultilabelAveragePrecision(classes, average="none", validate_args=False, sync_on_compute=False).to(
            device
        )
        self._found: list[float | None] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        has, predicted = targets > 0.5, outputs > self._threshold
        self._counts += torch.stack([has.sum(dim=0), predicted.sum(dim=0), (has & predicted).sum(dim=0)])
        # Average precision looks at the order alone, and torchmetrics at numbers from 0 to 1: unlike a sigmoid this keeps
        # large float32 logits apart.
        ordered = nn.functional.softsign(outputs.double()) / 2 + 0.5
        self._precision.update(ordered, has.long())

    def figures(self) -> dict[str, float]:
        support = self._ranks.total(self._counts)[0].tolist()
        values = _over(self._ranks, self._precision).tolist()
        self._found = [value if count else None for value, count in zip(values, support, strict=True)]
        known = [value for value in self._found if value is not None]
        return {"mAP": sum(known) / len(known) if known else math.nan}

    def detail(self) -> Detail:
        support, predicted, correct = self._counts.tolist()
        found: list[Figure | None] = [None if value is None else shortest(value) for value in self._found]
        return Detail(ClassColumns(support=support, predicted=predicted, correct=correct, average_precision=found))

    def told(self, outputs: Tensor, targets: Tensor) -> Iterator[tuple[list[int | Figure], list[int | Figure]]]:
        for target, output in zip(targets > 0.5, outputs > self._threshold, strict=True):
            yield _first(target.nonzero().flatten()), _first(output.nonzero().flatten())


class _Numbers:
    """Numbers: a regression."""

    def __init__(self, targets: int, device: torch.device, ranks: Ranks, loss_fn: LossFunction) -> None:
        self._ranks = ranks
        self._loss = loss_fn
        self._errors = {
            "mae": MeanAbsoluteError(num_outputs=targets, sync_on_compute=False),
            "rmse": MeanSquaredError(squared=False, num_outputs=targets, sync_on_compute=False),
        }
        self._r2 = R2Score(sync_on_compute=False)
        for metric in (*self._errors.values(), self._r2):
            metric.set_dtype(torch.float64).to(device)
        self._found: dict[str, list[float]] = {}

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        if isinstance(self._loss, nn.Module):
            outputs = predicted(self._loss, outputs)
        outputs, targets = outputs.double(), targets.double()
        for metric in self._errors.values():
            metric.update(outputs, targets)
        # It takes sums of squares below 1e-4 for none; times a power of two the score is the same to the bit.
        self._r2.update(outputs * _EXACT, targets * _EXACT)

    def figures(self) -> dict[str, float]:
        self._found = {name: _over(self._ranks, one).reshape(-1).tolist() for name, one in self._errors.items()}
        means = {name: sum(values) / len(values) for name, values in self._found.items()}
        try:
            return {**means, "r2": _over(self._ranks, self._r2).item()}
        except ValueError:  # of one sample there is none
            return {**means, "r2": math.nan}

    def detail(self) -> Detail:
        return Detail(ClassColumns(**{name: [shortest(value) for value in values] for name, values in self._found.items()}))

    def told(self, outputs: Tensor, targets: Tensor) -> Iterator[tuple[list[int | Figure], list[int | Figure]]]:
        for target, output in zip(targets, outputs, strict=True):
            yield _first(target), _first(output)


@dataclass
class _Hardest:
    """The samples with the highest losses so far, on the device, with their outputs and targets."""

    each: Callable[[Tensor, Tensor], Tensor | None]
    kept: tuple[Tensor, ...] = field(default=())
    known: bool = True

    def update(self, first: int, outputs: Tensor, targets: Tensor) -> None:
        losses = self.each(outputs, targets)
        if losses is None:
            self.known = False
            return
        indices = torch.arange(first, first + len(targets), device=losses.device)
        batch = (losses, indices, outputs, targets)
        joined = [torch.cat(pair) for pair in zip(self.kept, batch, strict=True)] if self.kept else batch
        chosen = joined[0].topk(min(MOST_HARD, len(joined[0]))).indices
        self.kept = tuple(one[chosen] for one in joined)

    def told(self, ranks: Ranks, tally: _Tally) -> list[Hard] | None:
        """Of all ranks, the hardest first."""
        mine: list[Hard] = []
        if self.kept:
            losses, indices, outputs, targets = (one.cpu() for one in self.kept)
            told = tally.told(outputs, targets)
            mine = [Hard(at, *one, loss) for at, one, loss in zip(indices.tolist(), told, losses.tolist(), strict=True)]
        found = ranks.gather((self.known, mine))
        if not all(known for known, _ in found):
            return None
        every = [one for _, some in found for one in some]
        return sorted(every, key=lambda one: (not math.isnan(one.loss), -one.loss, one.place))[:MOST_HARD]


@contextmanager
def _quiet() -> Iterator[None]:
    """Torchmetrics warns of a rank without a sample, and of classes without one; both are looked at here."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        yield


def _class_of(targets: Tensor) -> Tensor:
    """Class numbers, also of targets with one 1 a row."""
    return targets.argmax(dim=1) if targets.ndim == 2 else targets


def _first(values: Tensor) -> list[int | Figure]:
    """Numbers as an event has them."""
    found: Sequence[int | float] = values[:_MOST_NUMBERS].tolist()
    return [value if isinstance(value, int) else shortest(value) for value in found]
