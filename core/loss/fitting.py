"""Which of torch's losses fit which targets, and in which form each takes them."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from core.data.targets import Form, as_targets
from core.spec import Task

_PAIRS = "it compares outputs of several images, and here each has targets of its own"
_FIT_NOTHING = {
    "CTCLoss": "it takes sequences",
    "CosineEmbeddingLoss": _PAIRS,
    "GaussianNLLLoss": "it needs a variance beside each output, which no model here gives",
    "HingeEmbeddingLoss": "it takes distances between two images",
    "MarginRankingLoss": _PAIRS,
    "TripletMarginLoss": _PAIRS,
    "TripletMarginWithDistanceLoss": _PAIRS,
}
_ONE_OF_SEVERAL = {"CrossEntropyLoss", "KLDivLoss", "MultiMarginLoss", "NLLLoss"}
_YES_OR_NO = {"MultiLabelMarginLoss", "SoftMarginLoss"}
_FROM_0_TO_1 = {"BCELoss", "BCEWithLogitsLoss", "MultiLabelSoftMarginLoss"}

_FORMS: dict[str, Form] = {"MultiLabelMarginLoss": "lists", "SoftMarginLoss": "signs"}
"""Of losses that would run on another form too, and mean something else by it. Of the others it is found by trying."""
NATURAL: dict[Task, Form] = {"multiclass": "index", "multilabel": "dense", "regression": "dense"}
"""The form in which a dataset has its targets."""
TARGETS: dict[Task, str] = {"multiclass": "one class an image", "multilabel": "several labels an image", "regression": "numbers"}
GIVEN: dict[tuple[Task, Form], str] = {
    ("multiclass", "index"): "the number of the class",
    ("multiclass", "dense"): "one-hot",
    ("multiclass", "signs"): "1 for the class, -1 for the others",
    ("multiclass", "lists"): "a list of the class alone",
    ("multilabel", "dense"): "0 or 1 for each label",
    ("multilabel", "signs"): "-1 or 1 for each label",
    ("multilabel", "lists"): "a list of the labels",
    ("regression", "dense"): "the numbers",
}
"""What a loss is given, for people."""
ADVICE: dict[Task, str] = {
    "multiclass": (
        "Losses that fit: CrossEntropyLoss, MultiMarginLoss, NLLLoss where the model's outputs are log-probabilities; with "
        "one-hot targets BCEWithLogitsLoss, MSELoss and others."
    ),
    "multilabel": (
        "Losses that fit: BCEWithLogitsLoss, MultiLabelSoftMarginLoss, MultiLabelMarginLoss, SoftMarginLoss, MSELoss and others."
    ),
    "regression": "Losses that fit: MSELoss, L1Loss, SmoothL1Loss, HuberLoss, and PoissonNLLLoss for counts.",
}


class UnfitError(ValueError):
    """A loss that does not fit; the message says why."""


def form_of(loss: nn.Module, classes: int, labels: Tensor, task: Task) -> Form:
    """The form in which `loss` takes `labels`, those of a dataset (int64 [N] or float32 [N, classes]), for outputs [B, classes].

    One small batch is run. Raises UnfitError where there is no such form, or where what the loss makes of it is not the task.
    """
    name = type(loss).__name__
    if any(True for _ in loss.parameters()):
        raise UnfitError("it has parameters of its own, which no optimizer would train")
    if reason := _FIT_NOTHING.get(name) or _mistaken(name, task, labels):
        raise UnfitError(reason)
    # A batch as large as the classes (or of one) would let a loss that compares shapes broadcast, and pass.
    batch = next(size for size in (2, 3) if size != classes)
    outputs = torch.randn(batch, classes, generator=torch.Generator().manual_seed(0)).requires_grad_()
    if name == "BCELoss":
        outputs = outputs.sigmoid()
    targets = torch.cat([labels[:batch], *[labels[:1]] * batch])[:batch]
    known: tuple[Form, ...] = (_FORMS[name],) if name in _FORMS else ("index", "dense") if task == "multiclass" else ("dense",)
    failures = []
    for form in known:
        try:
            _run(loss, outputs, as_targets(targets, form, classes))
        except Exception as error:
            failures.append(error)
        else:
            return form
    raise UnfitError(str(failures[0]).splitlines()[0].rstrip(".")) from failures[0]


def _mistaken(name: str, task: Task, labels: Tensor) -> str | None:
    """Why a loss that would run is not meant for these targets."""
    if task == "multilabel" and name in _ONE_OF_SEVERAL:
        return "it tells one class of several, and here an image may have any of them"
    if task != "regression":
        return None
    low, high = float(labels.min()), float(labels.max())
    if name in _ONE_OF_SEVERAL | _YES_OR_NO:
        return "it tells classes apart"
    if name in _FROM_0_TO_1 and (low < 0 or high > 1):
        return f"it takes numbers from 0 to 1, and these go from {low:g} to {high:g}"
    if name == "PoissonNLLLoss" and low < 0:
        return f"it takes counts, and these go down to {low:g}"
    return None


def _run(loss: nn.Module, outputs: Tensor, targets: Tensor) -> None:
    with warnings.catch_warnings(action="error"):
        value = loss(outputs, targets)
    if value.ndim or not value.requires_grad:
        raise ValueError(f"it gives {list(value.shape)} numbers, not one to train by")
