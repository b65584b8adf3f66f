"""What is checked of a spec before there is a model, by a plan and by whoever trains without one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from core.data import mixing
from core.data.datasets import Dataset
from core.errors import DataError, Fault, SpecError, TransferError
from core.figures import figures_of
from core.loss.losses import build_loss, check_outputs, check_steps, make_loss
from core.optimizer import schedules
from core.spec import JobSpec

T = TypeVar("T")


class Faults:
    """Collects faults, each once, so that one answer has them all."""

    def __init__(self) -> None:
        self.found: dict[Fault, None] = {}

    def collect(self, attempt: Callable[[], T], pointer: str = "/pretrained/source") -> T | None:
        """What `attempt` gives, or None where it cannot work; a damaged file is a fault at `pointer`."""
        try:
            return attempt()
        except SpecError as error:
            self.add(error.faults)
        except (DataError, TransferError) as error:
            self.add([Fault(pointer, str(error))])
        return None

    def add(self, faults: Iterable[Fault]) -> None:
        """Keep these too."""
        self.found.update(dict.fromkeys(faults))


def check_loss(spec: JobSpec, dataset: Dataset | None) -> None:
    """Whether the loss can be made, fits the targets, mixed ones too, and takes what the model returns. Raises SpecError."""
    if dataset:
        loss = make_loss(spec.loss, dataset)
        if mixing.of_training(spec.training, dataset):
            if faults := mixing.check_loss(loss, spec.training, dataset):
                raise SpecError(*faults)
        else:  # mixed, an image is of two classes, and the mean is one over the images
            check_steps(loss, spec, dataset)
    else:
        build_loss(spec.loss, spec.dataset.task or "multiclass")
    check_outputs(spec.loss, spec.model.name)


def check_metrics(spec: JobSpec, dataset: Dataset | None) -> Iterator[Fault]:
    """Whether what a rule goes by is measured on this dataset; without one, on any."""
    stopping = spec.training.early_stopping
    named = [("/checkpoint", spec.checkpoint.metric), ("/training/early_stopping", stopping and stopping.metric)]
    named += [(pointer, schedule.metric) for pointer, schedule in schedules.specs_of(spec)]
    known = figures_of(dataset.task if dataset else None, len(dataset.classes) if dataset else 0)
    for pointer, metric in named:
        if metric is not None and metric not in known:
            yield Fault(f"{pointer}/metric", f"there is no figure '{metric}' of this validation; it has {', '.join(known)}")
