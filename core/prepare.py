"""Make everything that training needs, as a plan has said it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from core.augmentation import augment
from core.checks import Faults, check_loss, check_metrics
from core.data import mixing
from core.data.batches import Loader, make_loader
from core.data.datasets import Dataset, open_dataset
from core.data.ordering import steps_per_epoch
from core.data.placing import Tier, choose, room_on
from core.data.preprocessing import Preprocessing
from core.errors import SpecError
from core.events import GroupsData, TransferData
from core.loss.losses import bare_step, make_loss
from core.loss.means import counted
from core.models import features
from core.models.build import build_model, get_model
from core.models.features import Featured
from core.optimizer import groups as grouping
from core.optimizer import schedules
from core.optimizer.assignment import Group
from core.places import Places
from core.resolve import resolve
from core.shapes import run_shapes, shapes_of
from core.spec import JobSpec
from core.training import left_out
from core.training.ranks import Ranks
from core.training.recipe import Recipe, make_recipe


@dataclass(frozen=True)
class Prepared:
    """A job ready to train."""

    spec: JobSpec
    """Resolved: with the image size filled in."""
    dataset: Dataset
    preprocessing: Preprocessing
    model: nn.Module
    transfer: TransferData
    optimizer: Optimizer
    grouped: list[Group]
    groups: GroupsData
    """The table of `grouped`."""
    loss: nn.Module
    train: Loader | Featured
    validation: Loader | Featured
    steps_per_epoch: int
    recipe: Recipe
    ranks: Ranks
    """This process, or the group that it is one of."""


def prepare(spec: JobSpec, places: Places, device: torch.device, ranks: Ranks | None = None) -> Prepared:
    """Make everything that training needs, on `device`. The same spec and seed make the same thing, on each of several ranks.

    Raises SpecError where the spec cannot work, DataError and TransferError where a file is damaged.
    """
    dataset = open_dataset(spec.dataset, places, spec.training.seed)
    faults = Faults()  # for whoever trains without a plan
    faults.collect(lambda: check_loss(spec, dataset))
    faults.add(check_metrics(spec, dataset))
    if faults.found:
        raise SpecError(*faults.found)
    spec, preprocessing = resolve(spec, places, dataset)
    _seed(spec.training.seed)
    model, transfer = get_model(spec, len(dataset.classes), places, dataset.classes, task=dataset.task)
    model.to(device)
    ranks = ranks or Ranks()
    ranks.adopt(model, spec.training.seed)
    recipe = make_recipe(model, spec.training, preprocessing.size, device)
    per_epoch = steps_per_epoch(len(dataset.train), spec)
    scheduled = partial(schedules.assign, spec=spec, per_epoch=per_epoch)
    optimizer, grouped = grouping.build_optimizer(model, spec.optimizer, device, transfer.head, scheduled)

    pipeline = pipeline_of(spec, dataset, preprocessing)
    tiers = tiers_of(dataset, preprocessing, places, device, pipeline)

    def loader(train: bool) -> Loader:
        return make_loader(
            dataset.train if train else dataset.validation, spec.loader, preprocessing,
            channels=dataset.channels, seed=spec.training.seed, train=train, device=device, places=places,
            tier=tiers["train" if train else "validation"], on_corrupt=spec.dataset.corrupt,
            augment=pipeline if train else None, mixing=mixing.of_training(spec.training, dataset) if train else None,
        )  # fmt: skip

    train, validation = loader(True), loader(False)
    loss = make_loss(spec.loss, dataset)
    made, _ = features.foresee(
        model, grouped, spec, places, size=preprocessing.size, images=len(dataset.train) + len(dataset.validation)
    )
    recipe.backbone = features.run_once(made, model, train, recipe.run) if made else None
    if spec.dataset.corrupt == "skip":
        for split in (train, validation):
            left_out.agree(split, ranks.gather)
            split.may_lose = any(ranks.gather(split.may_lose))
        left_out.check(
            train, validation, spec.training.epochs, partial(_trains_on_one, spec, len(dataset.classes), places),
            partial(_weightless, loss, spec, dataset, train, validation),
        )  # fmt: skip
    return Prepared(
        spec=spec,
        dataset=dataset,
        preprocessing=preprocessing,
        model=model,
        transfer=transfer,
        optimizer=optimizer,
        grouped=grouped,
        groups=grouping.report(grouped, spec.optimizer, device).model_copy(update={"runs": f"{device}, {recipe}"}),
        loss=loss.to(device),
        train=Featured(train, recipe.backbone) if recipe.backbone else train,
        validation=Featured(validation, recipe.backbone) if recipe.backbone and recipe.backbone.validates else validation,
        steps_per_epoch=per_epoch,
        recipe=recipe,
        ranks=ranks,
    )


def _seed(seed: int) -> None:
    """The global generators, from which a model's constructor and its dropout draw."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def tiers_of(
    dataset: Dataset, preprocessing: Preprocessing, places: Places, device: torch.device | None, pipeline: augment.Pipeline | None
) -> dict[str, Tier]:
    """Of both splits: validation has what training leaves of the device's room, at the size that its augmentation wants."""
    room = room_on(device, places)
    train = choose(dataset.train, pipeline.held if pipeline else preprocessing.size, dataset.channels, places, room)
    return {
        "train": train,
        "validation": choose(dataset.validation, preprocessing.size, dataset.channels, places, room.less(train)),
    }


def _trains_on_one(spec: JobSpec, classes: int, places: Places) -> bool:
    model = shapes_of(lambda: build_model(spec.model, classes, places))
    try:
        run_shapes(model, spec.dataset.image_size or 0, 1)
    except Exception:  # whatever a model raises where one image is too few
        return False
    return True


def _weightless(loss: nn.Module, spec: JobSpec, dataset: Dataset, train: Loader, validation: Loader) -> str | None:
    """Which images all weigh nothing in the loss, once those are left out that cannot be read; None where there are none."""
    weight = counted(loss, dataset.validation.labels[validation.kept(0)])
    if weight is not None and not weight:
        return "every validation image is of a class that weighs nothing"
    if mixing.of_training(spec.training, dataset):  # mixed, an image is of two classes, and the mean is one over the images
        return None
    step = bare_step(loss, spec, dataset.train.labels, train.corrupt)
    return None if step is None else f"in step {step} every image is of a class that weighs nothing"


def pipeline_of(resolved: JobSpec, dataset: Dataset | None, preprocessing: Preprocessing) -> augment.Pipeline | None:
    """The augmentation of the training images; None where there is none. Raises SpecError."""
    return augment.build(
        resolved.dataset.augment, size=preprocessing.size, channels=dataset.channels if dataset else 3,
        own=dataset.size if dataset else None, seed=resolved.training.seed,
    )  # fmt: skip
