"""Fill in what a spec leaves out: from the weights, else from the dataset, and what it is judged by."""

from __future__ import annotations

from core.augmentation import presets
from core.data.datasets import Dataset
from core.data.preprocessing import Preprocessing
from core.figures import FIGURES, OWN
from core.loss.losses import resolve_loss
from core.models.build import size_keyword, takes
from core.optimizer.forms import PLATEAU
from core.places import Places
from core.spec import JobSpec, ScheduleSpec, Task
from core.transfer.sources import preprocessing_of

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and std of ImageNet's RGB images in 0..1 (torchvision's presets)."""
DEFAULT_SIZE = 224
"""Where neither the weights nor the dataset say: what most torchvision models were trained at."""


def resolve(spec: JobSpec, places: Places, dataset: Dataset | None) -> tuple[JobSpec, Preprocessing]:
    """The spec with what it left out, and how images reach the model. Without a dataset its own size counts as unknown.

    A model that is built for one image size (a ViT) is built for this one. Raises SpecError at /pretrained/source and below
    /loss.
    """
    known = preprocessing_of(spec.pretrained.source, places) if spec.pretrained else None
    own = max(dataset.size) if dataset and dataset.size else DEFAULT_SIZE
    size = spec.dataset.image_size or (known.size if known else own)
    mean, std = (known.mean, known.std) if known else IMAGENET
    model = spec.model
    if (keyword := size_keyword(model)) and keyword not in model.keywords:
        model = model.model_validate({**model.model_dump(), keyword: size})
    if known and takes(model, "transform_input") and "transform_input" not in model.keywords:
        # GoogLeNet's and Inception's weights want images scaled to -1..1: torchvision sets it wherever it loads them.
        model = model.model_validate({**model.model_dump(), "transform_input": True})
    operations = presets.listed(spec.dataset.augment, size, dataset.channels if dataset else 3, mean)
    task = dataset.task if dataset else spec.dataset.task
    resolved = spec.dataset.model_copy(update={"image_size": size, "augment": operations, "task": task})
    spec = spec.model_copy(update={"dataset": resolved, "model": model, "loss": resolve_loss(spec.loss, dataset)})
    return with_metrics(spec, dataset.task) if dataset else spec, Preprocessing(size, mean, std)


def with_metrics(spec: JobSpec, task: Task) -> JobSpec:
    """The spec with every figure named that it goes by: the task's own where it does not say, and for a plateau the loss."""
    stopping, optimizer = spec.training.early_stopping, spec.optimizer
    if stopping is not None and stopping.metric is None:
        stopping = stopping.model_copy(update={"metric": OWN[task]})
    groups = [group.model_copy(update={"schedule": _heard(group.schedule, task)}) for group in optimizer.groups]
    return spec.model_copy(
        update={
            "checkpoint": spec.checkpoint.model_copy(update={"metric": spec.checkpoint.metric or OWN[task]}),
            "training": spec.training.model_copy(update={"early_stopping": stopping}),
            "schedule": _heard(spec.schedule, task),
            "optimizer": optimizer.model_copy(update={"groups": groups}),
        }
    )


def _heard(schedule: ScheduleSpec | None, task: Task) -> ScheduleSpec | None:
    if schedule is None or schedule.name != PLATEAU or schedule.metric is not None:
        return schedule
    highest = next(name for name, way in FIGURES[task].items() if way == "max")
    return schedule.model_copy(update={"metric": highest if schedule.keywords.get("mode") == "max" else "loss"})
