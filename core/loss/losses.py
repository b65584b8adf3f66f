"""Losses of torch.nn: made by name, weighted, and given the targets of a dataset in the form that each takes."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.data.datasets import Dataset
from core.data.forensics import step_windows
from core.data.ordering import epoch_order
from core.data.targets import Converting, Form
from core.errors import Fault, SpecError, did_you_mean, pointer_of
from core.keywords import check_keywords, keyword_defaults, tensor_keywords
from core.loss.balance import BALANCED, class_weights, positive_weights
from core.loss.fitting import ADVICE, GIVEN, NATURAL, TARGETS, UnfitError, form_of
from core.loss.means import counted, weights
from core.loss.scale import scale_notes
from core.spec import DEFAULT_LOSSES, JobSpec, LossSpec, Task

_NAME = "/loss/name"
_SHOWN = 100  # the most classes whose balanced weights stand in the resolved spec
_REFUSED_KEYWORDS = {
    "size_average": "torch has deprecated it; leave it out",
    "reduce": "torch has deprecated it; leave it out",
    "device": "the loss goes where the model is; leave it out",
    "dtype": "the loss has the model's type; leave it out",
    "log_target": "the targets here are probabilities; leave it out",
}
_MEAN = {"KLDivLoss": "batchmean"}
"""What the mean over samples is called where it is not `mean`: that of KLDivLoss divides by the classes too."""
_WEIGHTED = {"CrossEntropyLoss": "weight", "MultiMarginLoss": "weight", "NLLLoss": "weight", "BCEWithLogitsLoss": "pos_weight"}
"""The keyword that may be `balanced`."""


def loss_names() -> list[str]:
    """The loss classes of torch.nn."""
    return sorted(name for name, value in vars(nn).items() if name.endswith("Loss") and inspect.isclass(value))


def resolve_loss(spec: LossSpec, dataset: Dataset | None) -> LossSpec:
    """With its name, by the dataset's task, and with balanced weights as numbers, unless there are more than a hundred.

    Raises SpecError below /loss where nothing can be balanced.
    """
    named = _named(spec, dataset.task if dataset else "multiclass")
    return named if dataset is None or len(dataset.classes) > _SHOWN else _balanced(named, dataset)[0]


def make_loss(spec: LossSpec, dataset: Dataset) -> nn.Module:
    """The loss, on the CPU, of outputs [B, K] and targets as the dataset has them. Raises SpecError below /loss."""
    weighted, _ = _balanced(_named(spec, dataset.task), dataset)
    loss = build_loss(weighted, dataset.task)
    form: Form = NATURAL[dataset.task]
    for images in (dataset.validation, dataset.train):
        form = check_loss(loss, weighted, len(dataset.classes), images.labels, dataset.task)
    for split, images in ("validation", dataset.validation), ("training", dataset.train):
        if (weight := counted(loss, images.labels)) is not None and not weight:
            raise SpecError.at(_weighing(spec), f"every {split} image is of a class that weighs nothing: there is no loss of it")
    return loss if form == NATURAL[dataset.task] else Converting(loss, form)


def loss_notes(spec: LossSpec, dataset: Dataset, model: str) -> Iterator[str]:
    """What a person should know of a loss that can be made: what it is given, its weights, what it expects of the model."""
    spec = _named(spec, dataset.task)
    loss = make_loss(spec, dataset)
    if isinstance(loss, Converting):
        yield f"{spec.name} is given the targets as {GIVEN[dataset.task, loss.form]}"
    yield from _balanced(spec, dataset)[1]
    if dataset.task == "regression":
        yield from scale_notes(dataset.train.labels, dataset.classes, str(spec.name))
    of_library = model.startswith(("torchvision:", "timm:"))
    if of_library and spec.name in ("NLLLoss", "KLDivLoss"):
        yield f"{spec.name} takes log-probabilities, but this model gives logits; CrossEntropyLoss is what fits them"
    if of_library and spec.name == "PoissonNLLLoss" and spec.keywords.get("log_input") is False:
        yield "PoissonNLLLoss without log_input takes rates above 0, but this model gives any number; leave log_input out"


def check_steps(loss: nn.Module, spec: JobSpec, dataset: Dataset) -> None:
    """Raise SpecError where all images of some step are of classes that weigh nothing: its loss would be no number.

    `loss` is that of `make_loss`.
    """
    if (step := bare_step(loss, spec, dataset.train.labels)) is not None:
        raise SpecError.at(
            _weighing(spec.loss),
            f"in step {step} every image is of a class that weighs nothing: it has no loss; take a larger loader.batch_size, or "
            "a weight above 0",
        )


def bare_step(loss: nn.Module, spec: JobSpec, labels: Tensor, without: Collection[int] = ()) -> int | None:
    """The first step of which all images weigh nothing, but those that it goes `without`; None where there is no such step.

    It is looked for in each epoch's own order, and only where there are such classes at all.
    """
    each = weights(loss, labels)
    if each is None or bool((weighs := each != 0).all()):
        return None
    weighs[list(without)] = False
    windows = step_windows(len(labels), spec.loader, spec.training.accumulate)
    ends = torch.tensor([(window[0][1][0], window[-1][1][1]) for window in windows]).reshape(-1, 2)
    for epoch in range(spec.training.epochs):
        order = epoch_order(len(labels), spec.training.seed if spec.loader.shuffle else None, epoch)
        before = functional.pad(weighs[order].cumsum(0), (1, 0))
        if bare := (before[ends[:, 1]] == before[ends[:, 0]]).nonzero().flatten().tolist():
            return epoch * len(windows) + int(bare[0])
    return None


def check_outputs(spec: LossSpec, model: str) -> None:
    """Raise SpecError at /loss/name where what a model of a library gives would make the loss fail."""
    if spec.name == "BCELoss" and model.startswith(("torchvision:", "timm:")):
        raise SpecError.at(_NAME, "BCELoss takes probabilities, but this model gives logits; BCEWithLogitsLoss takes them")


def build_loss(spec: LossSpec, task: Task = "multiclass") -> nn.Module:
    """The loss alone, on the CPU; a list given for a tensor (`weight`) becomes one. Raises SpecError below /loss.

    `balanced` is left out: what it stands for is the dataset's.
    """
    name = spec.name or DEFAULT_LOSSES[task]
    if name not in loss_names():
        raise SpecError.at(_NAME, f"torch.nn has no loss '{name}'.{did_you_mean(name, loss_names())}")
    target = getattr(nn, name)
    mean = _MEAN.get(name, "mean")
    given = {key: value for key, value in spec.keywords.items() if not (value == BALANCED and _WEIGHTED.get(name) == key)}
    faults = [
        Fault(fault.pointer, fault.message.replace("a list of numbers", f"a list of numbers or '{BALANCED}'"))
        if fault.pointer == f"/loss/{_WEIGHTED.get(name)}"
        else fault
        for fault in check_keywords(target, given, "/loss", refused=_REFUSED_KEYWORDS)
    ]
    if given.get("reduction", mean) != mean:
        faults.append(Fault("/loss/reduction", f"an iteration's loss is the mean over its batch; only '{mean}' is served"))
    tensors = tensor_keywords(target)
    if faults := faults or [fault for key in given if key in tensors for fault in _unweighable(key, given[key])]:
        raise SpecError(*faults)
    keywords = {key: _tensor(value) if key in tensors else value for key, value in given.items()}
    if name in _MEAN:
        keywords["reduction"] = mean
    try:
        loss: nn.Module = target(**keywords)
    except Exception as error:
        raise SpecError.at(_only_keyword(spec), f"{name} cannot be made: {error}. {ADVICE[task]}") from error
    return loss


def check_loss(loss: nn.Module, spec: LossSpec, classes: int, labels: Tensor, task: Task = "multiclass") -> Form:
    """The form in which the loss that was built of `spec` takes `labels`. Raises SpecError below /loss where it fits none."""
    for key in ("weight", "pos_weight"):
        given = spec.keywords.get(key)
        if isinstance(given, list) and len(given) != classes:
            raise SpecError.at(f"/loss/{key}", f"it has {len(given)} numbers, but the dataset has {classes} classes")
    try:
        return form_of(loss, classes, labels, task)
    except UnfitError as error:
        if spec.keywords and _fits_without(spec, classes, labels, task):
            raise SpecError.at(_only_keyword(spec), f"{spec.name} refuses it: {error}") from error
        raise SpecError.at(_NAME, f"{spec.name} does not fit {TARGETS[task]}: {error}. {ADVICE[task]}") from error


def loss_table() -> dict[str, Any]:
    """Every loss: its keywords, what it is given as targets of the tasks that it fits, and why it does not fit the others."""
    return {
        name: {"keywords": keyword_defaults(getattr(nn, name), (*_REFUSED_KEYWORDS, "reduction")), **_tasks(name)}
        for name in loss_names()
    }


def _tasks(name: str) -> dict[str, Any]:
    labels: dict[Task, Tensor] = {
        "multiclass": torch.tensor([0, 1]),
        "multilabel": torch.tensor([[0.0, 1, 1], [1, 0, 0]]),
        "regression": torch.tensor([[0.5, 0.1, 0.2], [0.3, 0.9, 0.7]]),
    }
    targets: dict[str, str] = {}
    unfit: dict[str, str] = {}
    for task, some in labels.items():
        try:
            targets[task] = GIVEN[task, form_of(build_loss(LossSpec(name=name)), 3, some, task)]
        except UnfitError as error:
            unfit[task] = str(error)
        except SpecError as error:
            unfit[task] = error.faults[0].message.removesuffix(f". {ADVICE['multiclass']}")
    return {"targets": targets, "unfit": unfit, "refused": None if targets else next(iter(unfit.values()))}


def _named(spec: LossSpec, task: Task) -> LossSpec:
    return spec.model_copy(update={"name": spec.name or DEFAULT_LOSSES[task]})


def _balanced(spec: LossSpec, dataset: Dataset) -> tuple[LossSpec, list[str]]:
    """The spec with its balanced weights as numbers, and notes on them. Raises SpecError where nothing can be balanced."""
    key = next((key for key in ("weight", "pos_weight") if spec.keywords.get(key) == BALANCED), None)
    if key is None:
        return spec, []
    if _WEIGHTED.get(str(spec.name)) != key:
        able = ", ".join(f"{name} ({its})" for name, its in _WEIGHTED.items())
        raise SpecError.at(f"/loss/{key}", f"'{BALANCED}' is not for {spec.name}; there are {able}; or give numbers")
    if dataset.task == "regression":
        raise SpecError.at(f"/loss/{key}", f"'{BALANCED}' weighs classes, and the dataset's targets are numbers; leave it out")
    make = class_weights if key == "weight" else positive_weights
    numbers, notes = make(dataset.train.labels, dataset.classes)
    return LossSpec.model_validate({**spec.model_dump(), key: numbers}), notes


def _unweighable(key: str, given: Any) -> Iterator[Fault]:
    """What of weights, if it is a list of them, turns a loss upside down, or leaves nothing of it."""
    numbers = given if isinstance(given, list) else []
    for index, one in enumerate(numbers):
        if not 0 <= one <= torch.finfo(torch.float32).max:
            yield Fault(f"/loss/{key}/{index}", f"a class weighs 0 or more, as far as a float32 goes, got {one}")
    if key == "weight" and numbers and not any(numbers):
        yield Fault("/loss/weight", "all weigh 0: nothing would be learnt")


def _weighing(spec: LossSpec) -> str:
    """Where a spec says what classes weigh."""
    return "/loss/weight" if "weight" in spec.keywords else "/loss/ignore_index"


def _fits_without(spec: LossSpec, classes: int, labels: Tensor, task: Task) -> bool:
    """Whether that loss fits without keywords."""
    try:
        form_of(build_loss(LossSpec(name=spec.name)), classes, labels, task)
    except (SpecError, UnfitError):
        return False
    return True


def _only_keyword(spec: LossSpec) -> str:
    return pointer_of("loss", *spec.keywords) if len(spec.keywords) == 1 else "/loss"


def _tensor(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float32) if isinstance(value, list) else value
