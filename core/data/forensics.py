"""Which samples a step is made of: derived from the spec and the dataset, as the loader derives them. Nothing of it is stored."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from torch import Tensor

from core.data.datasets import Dataset, open_dataset
from core.data.images import sendable
from core.data.ordering import batch_bounds, epoch_order
from core.errors import DataError, SpecError
from core.events import Figure, shortest
from core.places import Places
from core.spec import JobSpec, LoaderSpec


class Sample(BaseModel):
    """A sample of the training split, by its index there; `label` is its class, its labels, or its numbers."""

    index: int
    name: str
    label: str | list[str] | list[Figure]


class StepSamples(BaseModel):
    """What an optimizer step trains on: which batches of the epoch, and their samples in the order in which they are read."""

    step: int
    epoch: int
    batches: list[int]
    samples: list[Sample]


class Derived(BaseModel):
    """The samples of a step, and of which dataset; `found` is None where that is not the one that was asked for."""

    fingerprint: str
    found: StepSamples | None


def samples_of(spec: JobSpec, dataset: Dataset, step: int) -> StepSamples:
    """What the optimizer's step of this number, from 0 over the whole job, trains on; it need not have been trained yet.

    Several ranks share each batch: what is told is the whole one. Images that were left out are told too: the log knows which
    (`core.events.without`).
    Raises SpecError where the job has no such step.
    """
    images = dataset.train
    windows = step_windows(len(images), spec.loader, spec.training.accumulate)
    epoch, at = divmod(step, len(windows) or 1)
    if not 0 <= epoch < spec.training.epochs or not windows:
        last = len(windows) * spec.training.epochs - 1
        raise SpecError.at("query/step", f"the job has no step {step}; its steps are 0 to {last}")
    order = epoch_order(len(images), spec.training.seed if spec.loader.shuffle else None, epoch)
    batches = windows[at]
    first, last = batches[0][1][0], batches[-1][1][1]
    samples = [
        Sample(index=index, name=sendable(images.name(index)), label=_label(dataset, images.labels[index]))
        for index in order[first:last].tolist()
    ]
    return StepSamples(step=step, epoch=epoch, batches=[number for number, _ in batches], samples=samples)


def step_windows(samples: int, loader: LoaderSpec, accumulate: int = 1) -> list[list[tuple[int, tuple[int, int]]]]:
    """The batches of each step of an epoch: their numbers, and where they begin and end in the epoch's order.

    A step takes `accumulate` batches, the last one of an epoch what is left.
    """
    batches = list(enumerate(batch_bounds(samples, loader)))
    return [batches[first : first + accumulate] for first in range(0, len(batches), accumulate)]


def samples_request(payload: dict[str, Any]) -> dict[str, Any]:
    """`{"spec": …, "places": …, "step": …, "fingerprint": …}` to Derived, as JSON has them; a null fingerprint is any.

    Raises SpecError.
    """
    spec, places = JobSpec.model_validate(payload["spec"]), Places.model_validate(payload["places"])
    try:
        dataset = open_dataset(spec.dataset, places, spec.training.seed)
    except DataError as error:
        raise SpecError.at("/dataset/source", str(error)) from error
    same = payload["fingerprint"] in (None, dataset.fingerprint)
    found = samples_of(spec, dataset, payload["step"]) if same else None
    return Derived(fingerprint=dataset.fingerprint, found=found).model_dump(mode="json")


def _label(dataset: Dataset, target: Tensor) -> str | list[str] | list[Figure]:
    if target.ndim == 0:
        return dataset.classes[int(target)]
    if dataset.task == "regression":
        return [shortest(value) for value in target.tolist()]
    return [dataset.classes[label] for label in target.nonzero().flatten().tolist()]
