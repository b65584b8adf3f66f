"""Everything that can be known before training: `plan`, and `prepare`, which makes what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from core import groups as grouping
from core import weights
from core.batches import Loader, Preprocessing, estimate, make_loader, steps_per_epoch
from core.catalog import build_loss, check_loss
from core.datasets import Dataset, open_dataset
from core.errors import DataError, Fault, SpecError, TransferError, pointer_of
from core.events import GroupsData, TransferData
from core.models import build_model, find_head, get_model, takes
from core.outputs import logits_of
from core.places import Places
from core.shapes import run_shapes, shapes_of
from core.spec import JobSpec, faults_of

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and std of ImageNet's RGB images in 0..1 (torchvision's presets)."""
DEFAULT_SIZE = 224
"""Where neither the weights nor the dataset say: what most torchvision models were trained at."""
_SIZES = (16, 32, 48, 64, 75, 80, 96, 112, 128, 160, 192, 224, 256, 299, 320, 384, 448, 512, 518)
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


class Memory(BaseModel):
    """Bytes, estimated. `activations` are those that one batch keeps for its backward pass."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    data: int
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


def prepare(spec: JobSpec, places: Places, device: torch.device) -> Prepared:
    """Make everything that training needs, on `device`. The same spec and seed make the same thing.

    Raises SpecError where the spec cannot work, DataError and TransferError where a file is damaged.
    """
    dataset = open_dataset(spec.dataset, places, spec.training.seed)
    spec, preprocessing = resolve(spec, places, dataset)
    torch.manual_seed(spec.training.seed)
    model, transfer = get_model(spec, len(dataset.classes), places, dataset.classes)
    model.to(device)
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
    )


def plan(spec: JobSpec, places: Places) -> Plan:
    """What `prepare` would make and how long it would train, from shapes: no weights are read where a header will do.

    Raises SpecError with every fault that could be found in one go.
    """
    faults = _Faults()
    dataset = faults.collect(lambda: _opened(spec, places), "/dataset/source")
    resolved, preprocessing = faults.collect(lambda: resolve(spec, places, dataset)) or (
        spec,
        _preprocessing(spec, None, dataset),
    )
    classes = len(dataset.classes) if dataset else _STAND_IN
    labels = dataset.train.labels if dataset else torch.zeros(2, dtype=torch.int64)
    faults.collect(lambda: check_loss(build_loss(spec.loss), spec.loss, classes, labels))
    model = faults.collect(lambda: _shapes(resolved, spec, classes, places))
    if model is None:
        faults.collect(lambda: _check_source(spec, places))
        faults.add(faults.collect(lambda: grouping.check_optimizer(spec.optimizer)) or [])
        raise SpecError(*faults.found)
    transfer = faults.collect(lambda: _plan_transfer(model, resolved, places, dataset))
    groups = faults.collect(lambda: grouping.resolve(model, spec.optimizer))
    grouping.freeze(groups or [])
    samples = len(dataset.train) if dataset else 2
    kept = faults.collect(lambda: _check_forward(model, resolved, places, preprocessing.size, classes, samples))
    steps = faults.collect(lambda: _steps(spec, samples))
    if faults.found or dataset is None or transfer is None or groups is None or kept is None or steps is None:
        raise SpecError(*faults.found)
    splits = [estimate(images, preprocessing, dataset.channels) for images in (dataset.train, dataset.validation)]
    resident = [size for size in splits if size <= places.resident_bytes]
    return Plan(
        spec=resolved,
        dataset=_facts(dataset),
        preprocessing=PreprocessingFacts(size=preprocessing.size, mean=preprocessing.mean, std=preprocessing.std),
        tier="resident" if splits[0] <= places.resident_bytes else "streaming",
        transfer=transfer,
        groups=grouping.report(groups, spec.optimizer, torch.device("cpu")),
        steps=steps,
        lr={group.name: [(0, lr), (steps.total, lr)] for group in groups for lr in [group.hyperparameters["lr"]]},
        memory=_memory(model, spec, kept, sum(resident)),
        warnings=[*dataset.notes, *_warnings(spec, transfer, groups)],
    )


def plan_request(payload: dict[str, Any]) -> dict[str, Any]:
    """`{"spec": …, "places": …}` to a Plan, both as JSON has them. Raises SpecError."""
    try:
        spec = JobSpec.model_validate(payload["spec"])
    except ValidationError as error:
        raise SpecError(*faults_of(error)) from None
    return plan(spec, Places.model_validate(payload.get("places", {}))).model_dump(mode="json")


def resolve(spec: JobSpec, places: Places, dataset: Dataset | None) -> tuple[JobSpec, Preprocessing]:
    """The spec with what it left out filled in from the weights and the dataset, and the preprocessing that follows.

    A model that is built for one image size (a ViT) is built for this one.
    """
    known = weights.preprocessing_of(spec.pretrained.source, places) if spec.pretrained else None
    preprocessing = _preprocessing(spec, known, dataset)
    model = spec.model
    if takes(model, "image_size") and "image_size" not in model.keywords:
        model = model.model_validate({**model.model_dump(), "image_size": preprocessing.size})
    if takes(model, "transform_input") and "transform_input" not in model.keywords and known is not None:
        # GoogLeNet's and Inception's weights want images scaled to -1..1: so torchvision sets it wherever it loads them.
        model = model.model_validate({**model.model_dump(), "transform_input": True})
    resolved = spec.dataset.model_copy(update={"image_size": preprocessing.size})
    return spec.model_copy(update={"dataset": resolved, "model": model}), preprocessing


def _preprocessing(spec: JobSpec, known: Preprocessing | None, dataset: Dataset | None) -> Preprocessing:
    own = max(dataset.size) if dataset and dataset.size else DEFAULT_SIZE
    size = spec.dataset.image_size or (known.size if known else own)
    return Preprocessing(size, known.mean if known else IMAGENET[0], known.std if known else IMAGENET[1])


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

    def add(self, faults: Any) -> None:
        self.found.update(dict.fromkeys(faults))


def _opened(spec: JobSpec, places: Places) -> Dataset:
    """The dataset, and one image of it read, so that an unreadable one is found."""
    dataset = open_dataset(spec.dataset, places, spec.training.seed)
    dataset.train.read(0)
    return dataset


def _shapes(resolved: JobSpec, spec: JobSpec, classes: int, places: Places) -> nn.Module:
    """The model without data. Where it cannot be built for an image size that was filled in, the image size is to blame."""
    try:
        return shapes_of(lambda: build_model(resolved.model, classes, places))
    except SpecError as error:
        filled = pointer_of("model", "image_size")
        if "image_size" in spec.model.keywords:
            raise
        moved = [Fault("/dataset/image_size", one.message) if one.pointer == filled else one for one in error.faults]
        raise SpecError(*moved) from error


def _check_source(spec: JobSpec, places: Places) -> None:
    if spec.pretrained is not None:
        weights.read(spec.pretrained.source, places, shapes_only=True)


def _plan_transfer(model: nn.Module, spec: JobSpec, places: Places, dataset: Dataset | None) -> TransferData:
    classes = len(dataset.classes) if dataset else _STAND_IN
    if spec.pretrained is None:
        return weights.from_scratch(model, find_head(model, spec.model, classes, places))
    source = weights.read(spec.pretrained.source, places, shapes_only=True)
    head = find_head(model, spec.model, classes, places)
    wish = spec.pretrained if dataset else spec.pretrained.model_copy(update={"head": "reset"})
    return weights.plan_transfer(model, source, wish, head, dataset.classes if dataset else ()).report


def _check_forward(model: nn.Module, spec: JobSpec, places: Places, size: int, classes: int, samples: int) -> int:
    """Run a batch of shapes through the model as it trains; returns the bytes that a whole batch keeps for backward.

    Raises SpecError at what is to blame: the image size, the batch size, or the model.
    """
    batch = min(spec.loader.batch_size, samples, 2)
    try:
        outputs, kept = run_shapes(model, size, batch)
    except Exception as error:
        _blame(model, spec, size, batch, error)
        # No size works without data, so the model looks at values while it runs: it is given some.
        real = build_model(spec.model, classes, places)
        try:
            outputs, kept = run_shapes(real, size, batch)
        except Exception as again:
            _blame(real, spec, size, batch, again)
            raise SpecError.at("/model", f"'{spec.model.name}' fails at {size} px: {_first_line(again)}") from again
    try:
        shape = list(logits_of(outputs).shape)
    except TypeError as error:
        raise SpecError.at("/model/name", str(error)) from None
    if shape != [batch, classes]:
        raise SpecError.at(
            "/model/name",
            f"'{spec.model.name}' makes {shape} of {batch} images, but {classes} classes need [{batch}, {classes}]; "
            "a constructor that takes num_classes is given that number",
        )
    return kept * spec.loader.batch_size // batch


def _blame(model: nn.Module, spec: JobSpec, size: int, batch: int, error: Exception) -> None:
    """Raise SpecError where another image size or a larger batch would do; return where neither helps."""
    reason = _first_line(error)
    if batch == 1 and _works(model, size, 2):
        raise SpecError.at("/loader/batch_size", f"'{spec.model.name}' cannot train on batches of one image: {reason}")
    fitting = [other for other in _SIZES if other != size and _works(model, other, batch)]
    if fitting:
        sizes = f"{fitting[0]} px" if len(fitting) == 1 else f"{fitting[0]} px or more"
        raise SpecError.at(
            "/dataset/image_size", f"'{spec.model.name}' cannot train at {size} px ({reason}); set it: {sizes} would do"
        )


def _works(model: nn.Module, size: int, batch: int) -> bool:
    try:
        run_shapes(model, size, batch)
    except Exception:
        return False
    return True


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


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


def _memory(model: nn.Module, spec: JobSpec, activations: int, data: int) -> Memory:
    held = sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))
    trained = sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)
    state = int(trained * _state_share(spec))
    return Memory(
        parameters=held,
        gradients=trained,
        optimizer=state,
        activations=activations,
        data=data,
        total=held + trained + state + activations + data,
    )


def _state_share(spec: JobSpec) -> float:
    """What the optimizer keeps per byte of a parameter, found by one step on a small one."""
    parameter = nn.Parameter(torch.zeros(64, 64))
    optimizer, _ = grouping.build_optimizer(
        nn.ParameterList([parameter]), spec.optimizer.model_copy(update={"groups": []}), torch.device("cpu")
    )
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = (value for value in optimizer.state[parameter].values() if isinstance(value, Tensor) and value.ndim)
    return sum(value.numel() * value.element_size() for value in state) / (parameter.numel() * parameter.element_size())


def _warnings(spec: JobSpec, transfer: TransferData, groups: list[grouping.Group]) -> Iterator[str]:
    if spec.pretrained is None:
        yield "no pretrained weights are named: the model trains from scratch"
    misfits = [one.key for one in transfer.targets if one.status == "reinit" and one.source_shape != one.shape]
    misfits = [key for key in misfits if not key.startswith(tuple(f"{module}." for module in transfer.head))]
    if misfits:
        yield f"{len(misfits)} entries outside the head have another shape in the source and start anew: {', '.join(misfits[:5])}"
    if spec.pretrained and not transfer.head:
        yield "the head cannot be told from the rest, because the model does not take num_classes"
    anew = {one.key for one in transfer.targets if one.status != "loaded"}
    frozen = {name for group in groups if group.frozen for name, _ in group.parameters}
    if stuck := [name for name in anew & frozen if spec.pretrained]:
        yield f"{len(stuck)} parameters are frozen at random values, for nothing was loaded into them: {', '.join(sorted(stuck)[:5])}"
    for group, name in zip(spec.optimizer.groups, spec.optimizer.group_names, strict=True):
        if group.freeze and group.keywords:
            yield f"group '{name}' is frozen: its {', '.join(group.keywords)} has no effect"
    if spec.loss.name == "NLLLoss" and spec.model.name.startswith("torchvision:"):
        yield "NLLLoss takes log-probabilities, but torchvision's models give logits; CrossEntropyLoss is what fits them"
