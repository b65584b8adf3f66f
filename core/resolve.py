"""Fill in what a spec leaves out: image size and normalisation, from the weights, else from the dataset; presets; the loss."""

from __future__ import annotations

from core import augment
from core.batches import Preprocessing
from core.datasets import Dataset
from core.losses import resolve_loss
from core.models import size_keyword, takes
from core.places import Places
from core.sources import preprocessing_of
from core.spec import JobSpec

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
    operations = augment.listed(spec.dataset.augment, size, dataset.channels if dataset else 3, mean)
    task = dataset.task if dataset else spec.dataset.task
    resolved = spec.dataset.model_copy(update={"image_size": size, "augment": operations, "task": task})
    loss = resolve_loss(spec.loss, dataset)
    return spec.model_copy(update={"dataset": resolved, "model": model, "loss": loss}), Preprocessing(size, mean, std)
