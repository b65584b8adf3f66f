"""What a validation counts, by task: its figures, what holds of each class, what is taken for what.

Everything is kept on the device and read once, at the end; over several ranks it is what one would find. Figures are
torchmetrics'. The confusion matrix is not: that one has a dense [classes, classes] tensor, filled by comparing each batch with
every cell of it where algorithms must be deterministic, which for 1,000 classes takes gigabytes. Here it is counted from the
pairs that there were.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

from core.data.targets import predictions as predicted
from core.events import ClassColumns, Figure, shortest
from core.figures import TOP
from core.loss.means import LossFunction
from core.spec import Task
from core.training.ranks import Ranks

MOST_CONFUSED = 1000
"""Cells of the confusion matrix that an event carries: all of up to 32 classes."""
_MOST_NUMBERS = 20
"""Labels, or numbers, of a hard sample that are told."""
_EXACT = 2.0**20

Confusion = tuple[int, int, int]


@dataclass(frozen=True)
class Detail:
    """What a task tells beside its figures. `confused`: (class, prediction, samples), the most frequent first."""

    per_class: ClassColumns
    confused: list[Confusion] | None = None
    left_out: int = 0
    """Samples in the confusions beyond MOST_CONFUSED."""


class Tally(Protocol):
    """What a task counts."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """One batch."""

    def figures(self) -> dict[str, float]:
        """Of all ranks, but for the loss. A collective call, as `detail`."""

    def detail(self) -> Detail:
        """Of all ranks."""

    def told(self, outputs: Tensor, targets: Tensor) -> Iterator[tuple[list[int | Figure], list[int | Figure]]]:
        """Of each sample, on the CPU: its target and its prediction."""


def tally_of(task: Task, classes: int, device: torch.device, ranks: Ranks, loss_fn: LossFunction) -> Tally:
    """That of a task; `classes` are those of its targets, how many labels there are, or how many numbers."""
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


@contextmanager
def quiet() -> Iterator[None]:
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
