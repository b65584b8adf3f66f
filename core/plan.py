"""Everything that can be known before training."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from core import cautions
from core.augmentation import augment
from core.checks import Faults, check_loss, check_metrics
from core.data.datasets import Dataset, open_dataset
from core.data.ordering import batch_bounds, steps_per_epoch
from core.data.preprocessing import Preprocessing
from core.errors import DataError, SpecError
from core.events import TransferData
from core.loss.losses import loss_notes
from core.models import features
from core.models.build import build_model, find_head
from core.optimizer import groups as grouping
from core.optimizer import schedules
from core.optimizer.assignment import Group
from core.optimizer.assignment import resolve as resolve_groups
from core.optimizer.freezing import freeze
from core.optimizer.hyperparameters import check_optimizer
from core.places import PinnedWeights, Places
from core.planned import DatasetFacts, Plan, PreprocessingFacts, SplitTier, Steps
from core.prepare import pipeline_of, tiers_of
from core.resolve import resolve
from core.shapes import shapes_of
from core.spec import JobSpec, LossSpec, faults_of
from core.training import compiler
from core.transfer import sources, weights
from core.transfer.heads import Head
from core.trial import check_forward, memory

_STAND_IN = 10  # classes to build the model for where the dataset could not be opened, so that its own faults are found


def plan(spec: JobSpec, places: Places) -> Plan:
    """What `prepare` would make and how long it would train, from shapes: no weights are read where a header will do.

    Raises SpecError with every fault that could be found in one go.
    """
    faults = Faults()
    corrupt: list[str] = []
    dataset = faults.collect(lambda: _open(spec, places, corrupt), "/dataset/source")
    classes = len(dataset.classes) if dataset else _STAND_IN
    faults.collect(lambda: check_loss(spec, dataset))
    faults.add(schedules.check(spec))
    faults.add(check_metrics(spec, dataset))
    faults.add(compiler.check(spec.training))
    resolved, preprocessing = _resolved(spec, places, dataset, faults)
    model = faults.collect(lambda: _shapes(resolved, spec, classes, places))
    if model is None:
        faults.collect(lambda: _check_source(spec, places))
        faults.add(faults.collect(lambda: check_optimizer(spec.optimizer)) or [])
        raise SpecError(*faults.found)
    pipeline = faults.collect(lambda: pipeline_of(resolved, dataset, preprocessing))
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
    tiers = tiers_of(dataset, preprocessing, places, None, pipeline)
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
            *cautions.of_spec(spec, transfer, groups, len(batch_bounds(samples, spec.loader))),
            *augment.notes(spec.dataset.augment, pipeline),
            *loss_notes(spec.loss, dataset, spec.model.name),
            *schedules.notes(groups, steps.total),
            *cautions.of_ranks(spec, model),
        ],
    )


def plan_request(payload: dict[str, Any]) -> dict[str, Any]:
    """`{"spec": …, "places": …}` to a Plan, both as JSON has them. Raises SpecError."""
    try:
        spec = JobSpec.model_validate(payload["spec"])
    except ValidationError as error:
        raise SpecError(*faults_of(error)) from None
    return plan(spec, Places.model_validate(payload.get("places", {}))).model_dump(mode="json")


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


def _resolved(spec: JobSpec, places: Places, dataset: Dataset | None, faults: Faults) -> tuple[JobSpec, Preprocessing]:
    """As far as it goes: without the loss where that is at fault, else without the weights, which would say the image size."""
    lossless = spec.model_copy(update={"loss": LossSpec()})
    for wish in (spec, lossless):
        if found := faults.collect(partial(resolve, wish, places, dataset)):
            return found
    return resolve(lossless.model_copy(update={"pretrained": None}), places, None)


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
