"""Everything that can be known before training: `plan`, and `prepare`, which makes what it says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from torch import nn
from torch.optim import Optimizer

from core.augmentation import augment
from core.data import mixing
from core.data.batches import Loader, Preprocessing, batch_bounds, make_loader, steps_per_epoch
from core.data.datasets import Dataset, open_dataset
from core.data.placing import Tier, choose, room_on
from core.data.tiers import TierName
from core.errors import DataError, Fault, SpecError, TransferError
from core.events import GroupsData, TransferData
from core.figures import figures_of
from core.loss.losses import build_loss, check_outputs, check_steps, loss_notes, make_loss
from core.models import features
from core.models.build import build_model, find_head, get_model
from core.models.features import Featured, FeatureFacts
from core.models.norms import of_another_kind
from core.optimizer import groups as grouping
from core.optimizer import schedules
from core.optimizer.assignment import Group
from core.optimizer.assignment import resolve as resolve_groups
from core.optimizer.freezing import freeze
from core.optimizer.hyperparameters import check_optimizer
from core.places import PinnedWeights, Places
from core.resolve import resolve
from core.shapes import run_shapes, shapes_of
from core.spec import JobSpec, LossSpec, Task, faults_of
from core.training import compiler, left_out
from core.training.ranks import Ranks
from core.training.recipe import Recipe, make_recipe
from core.transfer import sources, weights
from core.transfer.heads import Head
from core.transfer.shortfall import shortfall
from core.trial import Memory, check_forward, memory

_STAND_IN = 10  # classes to build the model for where the dataset could not be opened, so that its own faults are found

T = TypeVar("T")


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


class DatasetFacts(BaseModel):
    """The dataset as it was found; `size` is (height, width) where all images are alike.

    `classes` are the names of the model's outputs: of a regression those of its numbers.
    """

    source: str
    task: Task
    classes: list[str]
    channels: int
    size: tuple[int, int] | None
    train: int
    validation: int
    fingerprint: str


class PreprocessingFacts(BaseModel):
    """How images reach the model: float32 [B, 3, size, size], (x / 255 - mean) / std."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class SplitTier(BaseModel):
    """Where the decoded images of a split are held, and by which numbers that was decided."""

    tier: TierName
    bytes: int
    why: str


class Steps(BaseModel):
    """Optimizer steps."""

    per_epoch: int
    total: int


class Plan(BaseModel):
    """What a spec means on this machine, before a step is trained."""

    spec: JobSpec
    dataset: DatasetFacts
    preprocessing: PreprocessingFacts
    tiers: dict[str, SplitTier]
    """Of `train` and `validation`."""
    transfer: TransferData | None
    """None while nobody here can tell: the file of weights was not fetched yet, and does not begin with what is in it."""
    pinned: PinnedWeights | None
    """The pretrained weights, as far as it is known here where they are."""
    groups: GroupsData
    steps: Steps
    lr: dict[str, list[tuple[int, float]]]
    """Per group its curve as (step, lr): see `core.optimizer.curves.Curve.points`."""
    momentum: dict[str, list[tuple[int, float]]]
    """The same of momentum, or of the first of betas, for the groups whose schedule moves it."""
    features: FeatureFacts | None
    """Whether what is frozen is run once; None where nothing is frozen."""
    memory: Memory
    warnings: list[str]


def prepare(spec: JobSpec, places: Places, device: torch.device, ranks: Ranks | None = None) -> Prepared:
    """Make everything that training needs, on `device`. The same spec and seed make the same thing, on each of several ranks.

    Raises SpecError where the spec cannot work, DataError and TransferError where a file is damaged.
    """
    dataset = open_dataset(spec.dataset, places, spec.training.seed)
    faults = _Faults()  # for whoever trains without a plan
    faults.collect(lambda: _check_loss(spec, dataset))
    faults.add(_check_metrics(spec, dataset))
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

    pipeline = _pipeline(spec, dataset, preprocessing)
    tiers = _tiers(dataset, preprocessing, places, device, pipeline)

    def loader(train: bool) -> Loader:
        return make_loader(
            dataset.train if train else dataset.validation, spec.loader, preprocessing,
            channels=dataset.channels, seed=spec.training.seed, train=train, device=device, places=places,
            tier=tiers["train" if train else "validation"], on_corrupt=spec.dataset.corrupt,
            augment=pipeline if train else None, mixing=mixing.of_training(spec.training, dataset) if train else None,
        )  # fmt: skip

    train, validation = loader(True), loader(False)
    if spec.dataset.corrupt == "skip":
        for split in (train, validation):
            left_out.agree(split, ranks.gather)
        left_out.check(train, validation, spec.training.epochs, partial(_trains_on_one, spec, len(dataset.classes), places))
    made, _ = features.foresee(
        model, grouped, spec, places, size=preprocessing.size, images=len(dataset.train) + len(dataset.validation)
    )
    recipe.backbone = features.run_once(made, model, train, recipe.run) if made else None
    return Prepared(
        spec=spec,
        dataset=dataset,
        preprocessing=preprocessing,
        model=model,
        transfer=transfer,
        optimizer=optimizer,
        grouped=grouped,
        groups=grouping.report(grouped, spec.optimizer, device).model_copy(update={"runs": f"{device}, {recipe}"}),
        loss=make_loss(spec.loss, dataset).to(device),
        train=Featured(train, recipe.backbone) if recipe.backbone else train,
        validation=Featured(validation, recipe.backbone) if recipe.backbone and recipe.backbone.validates else validation,
        steps_per_epoch=per_epoch,
        recipe=recipe,
        ranks=ranks,
    )


def plan(spec: JobSpec, places: Places) -> Plan:
    """What `prepare` would make and how long it would train, from shapes: no weights are read where a header will do.

    Raises SpecError with every fault that could be found in one go.
    """
    faults = _Faults()
    corrupt: list[str] = []
    dataset = faults.collect(lambda: _open(spec, places, corrupt), "/dataset/source")
    classes = len(dataset.classes) if dataset else _STAND_IN
    faults.collect(lambda: _check_loss(spec, dataset))
    faults.add(schedules.check(spec))
    faults.add(_check_metrics(spec, dataset))
    faults.add(compiler.check(spec.training))
    resolved, preprocessing = _resolved(spec, places, dataset, faults)
    model = faults.collect(lambda: _shapes(resolved, spec, classes, places))
    if model is None:
        faults.collect(lambda: _check_source(spec, places))
        faults.add(faults.collect(lambda: check_optimizer(spec.optimizer)) or [])
        raise SpecError(*faults.found)
    pipeline = faults.collect(lambda: _pipeline(resolved, dataset, preprocessing))
    head = faults.collect(lambda: find_head(model, resolved.model, classes, places)) or Head(frozenset(), ())
    known = faults.collect(lambda: spec.pretrained is None or sources.is_here(spec.pretrained.source, places))
    grafted = faults.collect(lambda: _plan_transfer(model, spec, head, places, dataset)) if known else None
    transfer, finite = grafted or (None, False)
    groups = faults.collect(lambda: resolve_groups(model, spec.optimizer, head.modules))
    kept = None
    if dataset and groups:
        freeze(model, groups, epoch=0)
        _, kept = features.foresee(
            model, groups, spec, places, size=preprocessing.size, images=len(dataset.train) + len(dataset.validation)
        )
    freeze(model, groups or [], spec.training.epochs - 1)  # the most that will train at once: it takes the most memory
    samples = len(dataset.train) if dataset else 2
    activations = faults.collect(
        lambda: check_forward(
            model, lambda: build_model(resolved.model, classes, places), spec,
            size=preprocessing.size, classes=classes, samples=samples,
        )
    )  # fmt: skip
    steps = faults.collect(lambda: _steps(spec, samples))
    if dataset and groups and steps:
        groups = faults.collect(partial(schedules.assign, groups, resolved, steps.per_epoch))
    if faults.found or not dataset or not groups or activations is None or not steps:
        raise SpecError(*faults.found)
    tiers = _tiers(dataset, preprocessing, places, None, pipeline)
    held = sum(tier.bytes for tier in tiers.values() if tier.name == "resident")
    return Plan(
        spec=resolved,
        dataset=_facts(dataset),
        preprocessing=PreprocessingFacts(**asdict(preprocessing)),
        tiers={split: SplitTier(tier=tier.name, bytes=tier.bytes, why=tier.why) for split, tier in tiers.items()},
        transfer=transfer,
        pinned=_pin(spec, places, finite),
        groups=grouping.report(groups, spec.optimizer, torch.device("cpu")),
        steps=steps,
        **_curves(groups, steps.total),
        features=kept,
        memory=memory(model, spec, activations=activations, data=held + (kept.bytes if kept and kept.once else 0)),
        warnings=[
            *dataset.notes,
            *corrupt,
            *_warnings(spec, transfer, groups, len(batch_bounds(samples, spec.loader))),
            *augment.notes(spec.dataset.augment, pipeline),
            *loss_notes(spec.loss, dataset, spec.model.name),
            *schedules.notes(groups, steps.total),
            *_rank_warnings(spec, model),
        ],
    )


def plan_request(payload: dict[str, Any]) -> dict[str, Any]:
    """`{"spec": …, "places": …}` to a Plan, both as JSON has them. Raises SpecError."""
    try:
        spec = JobSpec.model_validate(payload["spec"])
    except ValidationError as error:
        raise SpecError(*faults_of(error)) from None
    return plan(spec, Places.model_validate(payload.get("places", {}))).model_dump(mode="json")


class _Faults:
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
        self.found.update(dict.fromkeys(faults))


def _seed(seed: int) -> None:
    """The global generators, from which a model's constructor and its dropout draw."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _open(spec: JobSpec, places: Places, corrupt: list[str]) -> Dataset:
    """The dataset, and one image of it read, so that an unreadable one is found: a fault, or a note in `corrupt`."""
    dataset = open_dataset(spec.dataset, places, spec.training.seed)
    try:
        dataset.train.read(0)
    except DataError as error:
        if spec.dataset.corrupt == "fail":
            raise
        corrupt.append(f"{error}; it will be left out, and so will others")
    return dataset


def _tiers(
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


def _resolved(spec: JobSpec, places: Places, dataset: Dataset | None, faults: _Faults) -> tuple[JobSpec, Preprocessing]:
    """As far as it goes: without the loss where that is at fault, else without the weights, which would say the image size."""
    lossless = spec.model_copy(update={"loss": LossSpec()})
    for wish in (spec, lossless):
        if found := faults.collect(partial(resolve, wish, places, dataset)):
            return found
    return resolve(lossless.model_copy(update={"pretrained": None}), places, None)


def _check_loss(spec: JobSpec, dataset: Dataset | None) -> None:
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


def _pipeline(resolved: JobSpec, dataset: Dataset | None, preprocessing: Preprocessing) -> augment.Pipeline | None:
    return augment.build(
        resolved.dataset.augment, size=preprocessing.size, channels=dataset.channels if dataset else 3,
        own=dataset.size if dataset else None, seed=resolved.training.seed,
    )  # fmt: skip


def _check_metrics(spec: JobSpec, dataset: Dataset | None) -> Iterator[Fault]:
    """Whether what a rule goes by is measured on this dataset; without one, on any."""
    stopping = spec.training.early_stopping
    named = [("/checkpoint", spec.checkpoint.metric), ("/training/early_stopping", stopping and stopping.metric)]
    named += [(pointer, schedule.metric) for pointer, schedule in schedules.specs_of(spec)]
    known = figures_of(dataset.task if dataset else None, len(dataset.classes) if dataset else 0)
    for pointer, metric in named:
        if metric is not None and metric not in known:
            yield Fault(f"{pointer}/metric", f"there is no figure '{metric}' of this validation; it has {', '.join(known)}")


def _shapes(resolved: JobSpec, spec: JobSpec, classes: int, places: Places) -> nn.Module:
    """The model without data. Where it can be built, but not for the image size that was filled in, that is to blame."""
    try:
        return shapes_of(lambda: build_model(resolved.model, classes, places))
    except SpecError as error:
        if resolved.model == spec.model:
            raise
        shapes_of(lambda: build_model(spec.model, classes, places))
        size = resolved.dataset.image_size
        raise SpecError.at(
            "/dataset/image_size", f"for images of {size} px {error.faults[0].message}; set another size, 224 for example"
        ) from error


def _check_source(spec: JobSpec, places: Places) -> None:
    if spec.pretrained is not None and sources.is_here(spec.pretrained.source, places):
        sources.read(spec.pretrained.source, places, container=spec.pretrained.container, shapes_only=True)


def _pin(spec: JobSpec, places: Places, finite: bool) -> PinnedWeights | None:
    found = sources.pin(spec.pretrained.source, places) if spec.pretrained else None
    return found.model_copy(update={"finite": finite}) if found else None


def _plan_transfer(
    model: nn.Module, spec: JobSpec, head: Head, places: Places, dataset: Dataset | None
) -> tuple[TransferData, bool]:
    """The report; and whether the numbers of the file are known to be finite, which is found out here once for a pinned one."""
    if spec.pretrained is None:
        return weights.from_scratch(model, head), False
    source = sources.read(spec.pretrained.source, places, container=spec.pretrained.container, shapes_only=True)
    # Without the dataset's classes nothing can be said of the head.
    unknown: dict[str, Any] = {"head": "reset" if head.keys else "auto", "classes": None, "class_map": {}}
    wish = spec.pretrained if dataset else spec.pretrained.model_copy(update=unknown)
    classes, task = (dataset.classes, dataset.task) if dataset else ((), "multiclass")
    planned = weights.plan_transfer(model, source, wish, head, classes, task=task)
    pinned = places.pinned.get(source.name)
    if pinned is None or pinned.finite or not sources.is_as_pinned(source, pinned):
        return planned.report, pinned is not None and pinned.finite
    finite = weights.look_through(source, planned, model)
    return planned.report, finite and sources.is_as_pinned(source, pinned)


def _steps(spec: JobSpec, samples: int) -> Steps:
    per_epoch = steps_per_epoch(samples, spec)
    if not per_epoch:
        raise SpecError.at(
            "/loader/drop_last",
            f"{samples} training images are less than one batch of {spec.loader.batch_size}: nothing is left; lower batch_size",
        )
    return Steps(per_epoch=per_epoch, total=per_epoch * spec.training.epochs)


def _curves(groups: list[Group], total: int) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """The lr of each group, and the momentum of those where it is scheduled, over the job."""
    ends = sorted({0, total - 1})
    lr, momentum = {}, {}
    for group in groups:
        curve = group.curve
        constant = [(step, float(group.hyperparameters["lr"])) for step in ends]
        lr[group.name] = curve.points(total) if curve else constant
        if curve and (moved := curve.momentum_points(total)):
            momentum[group.name] = moved
    return {"lr": lr, "momentum": momentum}


def _facts(dataset: Dataset) -> DatasetFacts:
    return DatasetFacts(
        source=dataset.source,
        task=dataset.task,
        classes=list(dataset.classes),
        channels=dataset.channels,
        size=dataset.size,
        train=len(dataset.train),
        validation=len(dataset.validation),
        fingerprint=dataset.fingerprint,
    )


def _warnings(spec: JobSpec, transfer: TransferData | None, groups: list[Group], batches: int) -> Iterator[str]:
    """What works, but may not be what was meant."""
    if transfer is None:
        yield "the weights are not here yet: what is loaded is checked by the worker, once it has fetched them"
    else:
        yield from _transfer_warnings(spec, transfer, groups)
    for name, group in zip(spec.optimizer.group_names, spec.optimizer.groups, strict=True):
        given = [*group.keywords, *(["schedule"] if group.schedule else [])]
        if group.until_epoch is None and group.freeze and given:
            yield f"group '{name}' is frozen: its {', '.join(given)} has no effect"
        if group.until_epoch is not None and group.until_epoch >= spec.training.epochs:
            yield f"group '{name}' is frozen for {group.until_epoch} of {spec.training.epochs} epochs: it never trains"
    if spec.training.divergence.rolls_back and spec.checkpoint.keep_last == 1:
        yield (
            "a rollback goes to a checkpoint from before the trouble, and one alone is kept: where that is too late, the job "
            "begins anew; set checkpoint.keep_last to 2"
        )
    if batches < spec.training.accumulate:
        yield f"an epoch has {batches} batches, fewer than the {spec.training.accumulate} of a step: each epoch is one step"
    stopping = spec.training.early_stopping
    if stopping is not None and stopping.patience >= spec.training.epochs:
        yield f"early stopping waits for {stopping.patience} epochs, but the job has {spec.training.epochs}: it never stops"


def _transfer_warnings(spec: JobSpec, transfer: TransferData, groups: list[Group]) -> Iterator[str]:
    if spec.pretrained is None:
        yield "no pretrained weights are named: the model trains from scratch"
    elif not transfer.head:
        yield "the head cannot be told from the rest, because the model does not take num_classes"
    elif (
        any(one.status == "reinit" and one.shape == one.source_shape for one in transfer.targets)
        and spec.pretrained.head == "auto"
    ):
        yield (
            "the source's head has the right shape, but starts anew, for its classes are not known to be these; "
            "'keep' in /pretrained/head would load it, 'rows' those that both have"
        )
    if short := shortfall(transfer, spec.model.name):
        yield short
    loaded = {one.key for one in transfer.targets if one.status in ("loaded", "adapted")}
    frozen = [one.name for group in groups if group.freeze and group.until_epoch is None for one in group.members]
    if stuck := [name for name in frozen if name not in loaded]:
        yield f"frozen at random values, as nothing is loaded into them: {weights.listed(stuck)}"


def _rank_warnings(spec: JobSpec, model: nn.Module) -> Iterator[str]:
    """What is different on several GPUs."""
    gpus = spec.resources.gpus or 1
    if spec.loader.batch_size < gpus:
        yield f"loader.batch_size is that of all {gpus} GPUs together: with {spec.loader.batch_size} some of them have no sample"
    if gpus > 1 and (odd := of_another_kind(model)):
        yield f"these norms see the samples of one GPU alone, since they are not torch's own: {weights.listed(odd)}"
