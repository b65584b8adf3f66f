"""Everything that can be known before training: `plan`, and `prepare`, which makes what it says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from torch import nn
from torch.optim import Optimizer

from core import groups as grouping
from core import weights
from core.batches import Loader, Preprocessing, estimate, make_loader, steps_per_epoch
from core.catalog import build_loss, check_loss
from core.datasets import Dataset, open_dataset
from core.errors import DataError, Fault, SpecError, TransferError
from core.events import GroupsData, TransferData
from core.hyperparameters import check_optimizer
from core.models import build_model, find_head, get_model
from core.norms import of_another_kind
from core.places import Places
from core.ranks import Ranks
from core.resolve import resolve
from core.shapes import shapes_of
from core.spec import JobSpec, faults_of
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
    groups: GroupsData
    loss: nn.Module
    train: Loader
    validation: Loader
    steps_per_epoch: int
    ranks: Ranks
    """This process, or the group that it is one of."""


class DatasetFacts(BaseModel):
    """The dataset as it was found; `size` is (height, width) where all images are alike."""

    source: str
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


class Steps(BaseModel):
    """Optimizer steps."""

    per_epoch: int
    total: int


class Plan(BaseModel):
    """What a spec means on this machine, before a step is trained."""

    spec: JobSpec
    dataset: DatasetFacts
    preprocessing: PreprocessingFacts
    tier: str
    transfer: TransferData
    groups: GroupsData
    steps: Steps
    lr: dict[str, list[tuple[int, float]]]
    """Per group, the corners of its curve as (step, lr)."""
    memory: Memory
    warnings: list[str]


def prepare(spec: JobSpec, places: Places, device: torch.device, ranks: Ranks | None = None) -> Prepared:
    """Make everything that training needs, on `device`. The same spec and seed make the same thing, on each of several ranks.

    Raises SpecError where the spec cannot work, DataError and TransferError where a file is damaged.
    """
    dataset = open_dataset(spec.dataset, places, spec.training.seed)
    spec, preprocessing = resolve(spec, places, dataset)
    _seed(spec.training.seed)
    model, transfer = get_model(spec, len(dataset.classes), places, dataset.classes)
    model.to(device)
    ranks = ranks or Ranks()
    ranks.adopt(model, spec.training.seed)
    optimizer, groups = grouping.build_optimizer(model, spec.optimizer, device)

    def loader(train: bool) -> Loader:
        return make_loader(
            dataset.train if train else dataset.validation, spec.loader, preprocessing,
            channels=dataset.channels, seed=spec.training.seed, train=train, device=device, places=places,
        )  # fmt: skip

    return Prepared(
        spec=spec,
        dataset=dataset,
        preprocessing=preprocessing,
        model=model,
        transfer=transfer,
        optimizer=optimizer,
        groups=groups,
        loss=build_loss(spec.loss).to(device),
        train=loader(True),
        validation=loader(False),
        steps_per_epoch=steps_per_epoch(len(dataset.train), spec.loader),
        ranks=ranks,
    )


def plan(spec: JobSpec, places: Places) -> Plan:
    """What `prepare` would make and how long it would train, from shapes: no weights are read where a header will do.

    Raises SpecError with every fault that could be found in one go.
    """
    faults = _Faults()
    dataset = faults.collect(lambda: _open(spec, places), "/dataset/source")
    classes = len(dataset.classes) if dataset else _STAND_IN
    faults.collect(lambda: _check_loss(spec, dataset))
    resolved, preprocessing = faults.collect(lambda: resolve(spec, places, dataset)) or resolve(_bare(spec), places, None)
    model = faults.collect(lambda: _shapes(resolved, spec, classes, places))
    if model is None:
        faults.collect(lambda: _check_source(spec, places))
        faults.add(faults.collect(lambda: check_optimizer(spec.optimizer)) or [])
        raise SpecError(*faults.found)
    transfer = faults.collect(lambda: _plan_transfer(model, spec, resolved, places, dataset))
    groups = faults.collect(lambda: grouping.resolve(model, spec.optimizer))
    grouping.freeze(groups or [])
    samples = len(dataset.train) if dataset else 2
    activations = faults.collect(
        lambda: check_forward(
            model, lambda: build_model(resolved.model, classes, places), spec,
            size=preprocessing.size, classes=classes, samples=samples,
        )
    )  # fmt: skip
    steps = faults.collect(lambda: _steps(spec, samples))
    if faults.found or not dataset or not transfer or not groups or activations is None or not steps:
        raise SpecError(*faults.found)
    splits = [estimate(images, preprocessing, dataset.channels) for images in (dataset.train, dataset.validation)]
    held = sum(size for size in splits if size <= places.resident_bytes)
    return Plan(
        spec=resolved,
        dataset=_facts(dataset),
        preprocessing=PreprocessingFacts(**asdict(preprocessing)),
        tier="resident" if splits[0] <= places.resident_bytes else "streaming",
        transfer=transfer,
        groups=grouping.report(groups, spec.optimizer, torch.device("cpu")),
        steps=steps,
        lr={group.name: [(0, lr), (steps.total, lr)] for group in groups for lr in [group.hyperparameters["lr"]]},
        memory=memory(model, spec.optimizer, activations=activations, data=held, ranks=spec.resources.gpus or 1),
        warnings=[*dataset.notes, *_warnings(spec, transfer, groups), *_rank_warnings(spec, model)],
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


def _open(spec: JobSpec, places: Places) -> Dataset:
    """The dataset, and one image of it read, so that an unreadable one is found."""
    dataset = open_dataset(spec.dataset, places, spec.training.seed)
    dataset.train.read(0)
    return dataset


def _bare(spec: JobSpec) -> JobSpec:
    return spec.model_copy(update={"pretrained": None})


def _check_loss(spec: JobSpec, dataset: Dataset | None) -> None:
    loss = build_loss(spec.loss)
    if dataset:
        check_loss(loss, spec.loss, len(dataset.classes), dataset.train.labels)


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
    if spec.pretrained is not None:
        weights.read(spec.pretrained.source, places, shapes_only=True)


def _plan_transfer(model: nn.Module, spec: JobSpec, resolved: JobSpec, places: Places, dataset: Dataset | None) -> TransferData:
    head = find_head(model, resolved.model, len(dataset.classes) if dataset else _STAND_IN, places)
    if spec.pretrained is None:
        return weights.from_scratch(model, head)
    source = weights.read(spec.pretrained.source, places, shapes_only=True)
    # Without the dataset's classes nothing can be said of the head.
    wish = spec.pretrained if dataset else spec.pretrained.model_copy(update={"head": "reset"})
    return weights.plan_transfer(model, source, wish, head, dataset.classes if dataset else ()).report


def _steps(spec: JobSpec, samples: int) -> Steps:
    per_epoch = steps_per_epoch(samples, spec.loader)
    if not per_epoch:
        raise SpecError.at(
            "/loader/drop_last",
            f"{samples} training images are less than one batch of {spec.loader.batch_size}: nothing is left; lower batch_size",
        )
    return Steps(per_epoch=per_epoch, total=per_epoch * spec.training.epochs)


def _facts(dataset: Dataset) -> DatasetFacts:
    return DatasetFacts(
        source=dataset.source,
        classes=list(dataset.classes),
        channels=dataset.channels,
        size=dataset.size,
        train=len(dataset.train),
        validation=len(dataset.validation),
        fingerprint=dataset.fingerprint,
    )


def _warnings(spec: JobSpec, transfer: TransferData, groups: list[grouping.Group]) -> Iterator[str]:
    """What works, but may not be what was meant."""
    if spec.pretrained is None:
        yield "no pretrained weights are named: the model trains from scratch"
    elif not transfer.head:
        yield "the head cannot be told from the rest, because the model does not take num_classes"
    in_head = tuple(f"{module}." for module in transfer.head)
    misfits = [one.key for one in transfer.targets if one.status == "reinit" and not one.key.startswith(in_head or "\0")]
    if misfits:
        yield f"outside the head {len(misfits)} of the model's entries do not fit and start anew: {weights.listed(misfits)}"
    loaded = {one.key for one in transfer.targets if one.status == "loaded"}
    frozen = [name for group in groups if group.frozen for name, _ in group.parameters]
    if stuck := [name for name in frozen if name not in loaded]:
        yield f"frozen at random values, as nothing is loaded into them: {weights.listed(stuck)}"
    for group, name in zip(spec.optimizer.groups, spec.optimizer.group_names, strict=True):
        if group.freeze and group.keywords:
            yield f"group '{name}' is frozen: its {', '.join(group.keywords)} has no effect"
    if spec.loss.name == "NLLLoss" and spec.model.name.startswith("torchvision:"):
        yield "NLLLoss takes log-probabilities, but torchvision's models give logits; CrossEntropyLoss is what fits them"


def _rank_warnings(spec: JobSpec, model: nn.Module) -> Iterator[str]:
    """What is different on several GPUs."""
    gpus = spec.resources.gpus or 1
    if spec.loader.batch_size < gpus:
        yield f"loader.batch_size is that of all {gpus} GPUs together: with {spec.loader.batch_size} some of them have no sample"
    if gpus > 1 and (odd := of_another_kind(model)):
        yield f"these norms see the samples of one GPU alone, since they are not torch's own: {weights.listed(odd)}"
