"""Losses: which fit which targets, what each is given, what stands for `balanced`, and what is said of the others."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from core.data.datasets import Dataset
from core.data.images import ArrayImages
from core.data.targets import Converting, as_targets, predictions
from core.errors import SpecError
from core.loss.balance import class_weights, positive_weights
from core.loss.losses import build_loss, check_loss, check_steps, loss_names, loss_notes, make_loss, resolve_loss
from core.spec import DEFAULT_LOSSES, JobSpec, LossSpec, Task

SEVERAL = torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]])
NUMBERS = torch.tensor([[0.5, 0.1, 0.2], [0.3, 0.9, 0.7], [0, 1, 0.5], [0.25, 0.5, 0.75]])


def dataset(labels: Tensor, task: Task = "multiclass", classes: int = 3) -> Dataset:
    """One whose images are of no interest; it validates on what it trains on."""
    images = ArrayImages(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels, "train")
    names = tuple("abcdefghij"[:classes])
    return Dataset("x", names, 1, (8, 8), images, images, "", task)


OF_TASK: dict[Task, Dataset] = {
    "multiclass": dataset(torch.tensor([1, 0, 2, 1])),
    "multilabel": dataset(SEVERAL, "multilabel"),
    "regression": dataset(NUMBERS, "regression"),
}

DENSE = {
    "BCELoss", "BCEWithLogitsLoss", "HuberLoss", "L1Loss", "MSELoss", "MultiLabelSoftMarginLoss", "PoissonNLLLoss",
    "SmoothL1Loss",
}  # fmt: skip
INDEX = {"CrossEntropyLoss", "MultiMarginLoss", "NLLLoss"}
OTHERS = {"SoftMarginLoss": "signs", "MultiLabelMarginLoss": "lists"}
FORMS: dict[str, dict[str, str]] = {
    "multiclass": {**dict.fromkeys(INDEX, "index"), **dict.fromkeys({*DENSE, "KLDivLoss"}, "dense"), **OTHERS},
    "multilabel": {**dict.fromkeys(DENSE, "dense"), **OTHERS},
    "regression": dict.fromkeys(DENSE, "dense"),
}
REASONS = {
    "AdaptiveLogSoftmaxWithLoss": "cannot be made",
    "CTCLoss": "sequences",
    "CosineEmbeddingLoss": "several images",
    "GaussianNLLLoss": "a variance beside each output",
    "HingeEmbeddingLoss": "distances",
    "LinearCrossEntropyLoss": "cannot be made",
    "MarginRankingLoss": "several images",
    "TripletMarginLoss": "several images",
    "TripletMarginWithDistanceLoss": "several images",
}


def refusal(name: str | None, data: Dataset, **keywords: Any) -> tuple[str, str]:
    with pytest.raises(SpecError) as refused:
        make_loss(LossSpec(name=name, **keywords), data)
    (only,) = refused.value.faults
    return only.pointer, only.message


@pytest.mark.parametrize(("name", "task"), list(product(loss_names(), get_args(Task))))
def test_each_loss_fits_a_task_in_one_form_or_says_why_it_does_not_and_which_do(name: str, task: Task) -> None:
    data = OF_TASK[task]
    natural = "index" if task == "multiclass" else "dense"
    if name in FORMS[task]:
        loss = make_loss(LossSpec(name=name), data)
        assert (loss.form if isinstance(loss, Converting) else natural) == FORMS[task][name]
        outputs = torch.randn(4, 3).sigmoid().requires_grad_()  # probabilities: all losses take them
        value = loss(outputs, data.train.labels)
        value.backward()
        assert value.ndim == 0
        assert outputs.grad is not None
        assert outputs.grad.isfinite().all()
    else:
        pointer, message = refusal(name, data)
        assert pointer in {"/loss/name", "/loss"}
        one_class = "tells one class of several" if task == "multilabel" else "tells classes apart"
        assert REASONS.get(name, one_class) in message
        assert "Losses that fit: " in message


@pytest.mark.parametrize("name", sorted({name for forms in FORMS.values() for name in forms}))
@pytest.mark.parametrize("task", get_args(Task))
def test_the_parts_of_a_batch_weighted_by_their_samples_are_the_loss_of_the_batch(name: str, task: Task) -> None:
    """What ranks and accumulation rely on: the mean of a loss is over samples, whatever else it is over."""
    if name not in FORMS[task]:
        return
    data = OF_TASK[task]
    loss, labels = make_loss(LossSpec(name=name), data), data.train.labels
    outputs = torch.rand(4, 3)
    parts = 0.25 * loss(outputs[:1], labels[:1]) + 0.75 * loss(outputs[1:], labels[1:])
    assert parts.item() == pytest.approx(loss(outputs, labels).item(), rel=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_loss_that_would_broadcast_is_given_the_shape_that_it_means(classes: int) -> None:
    labels = torch.arange(7) % classes
    loss = make_loss(LossSpec(name="MSELoss"), dataset(labels, classes=classes))
    outputs = torch.randn(7, classes)
    assert torch.equal(loss(outputs, labels), nn.MSELoss()(outputs, functional.one_hot(labels, classes).float()))


def test_the_forms_of_targets() -> None:
    index = torch.tensor([2, 0])
    assert as_targets(index, "dense", 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert as_targets(index, "signs", 3).tolist() == [[-1, -1, 1], [1, -1, -1]]
    assert as_targets(index, "lists", 3).tolist() == [[2, -1, -1], [0, -1, -1]]
    assert as_targets(SEVERAL, "lists", 3).tolist() == [[1, 2, -1], [0, -1, -1], [-1, -1, -1], [0, 1, 2]]
    mixed = torch.tensor([[0.25, 0.75, 0]])
    assert as_targets(mixed, "dense", 3) is mixed


def test_a_loss_by_default_goes_by_the_targets() -> None:
    for task, data in OF_TASK.items():
        assert type(make_loss(LossSpec(), data)).__name__ == DEFAULT_LOSSES[task]
        assert resolve_loss(LossSpec(), data).name == DEFAULT_LOSSES[task]


def test_numbers_out_of_a_losss_range_are_refused() -> None:
    below = dataset(NUMBERS - 2, "regression")
    assert "it takes counts, and these go down to -2" in refusal("PoissonNLLLoss", below)[1]
    for name in ("BCELoss", "BCEWithLogitsLoss", "MultiLabelSoftMarginLoss"):
        assert "it takes numbers from 0 to 1, and these go from -2 to -1" in refusal(name, below)[1]
    held = replace(dataset(NUMBERS, "regression"), validation=below.train)
    assert "these go down to -2" in refusal("PoissonNLLLoss", held)[1], "what validates is given to it too"


def test_the_mean_of_kldivloss_is_over_samples() -> None:
    loss = make_loss(LossSpec(name="KLDivLoss"), OF_TASK["multiclass"])
    outputs = torch.randn(4, 3).log_softmax(dim=1)
    labels = OF_TASK["multiclass"].train.labels
    assert loss(outputs, labels).item() == pytest.approx(nn.NLLLoss()(outputs, labels).item())


def test_outputs_are_read_on_the_scale_of_the_targets() -> None:
    outputs = torch.tensor([[0.0, 1.0]])
    assert predictions(nn.PoissonNLLLoss(), outputs).tolist() == [[1, pytest.approx(math.e)]]
    assert torch.equal(predictions(nn.PoissonNLLLoss(log_input=False), outputs), outputs)
    assert torch.equal(predictions(Converting(nn.BCEWithLogitsLoss(), "dense"), outputs), outputs.sigmoid())
    assert torch.equal(predictions(nn.MSELoss(), outputs), outputs)


def test_the_plan_tells_the_scale_of_numbers_and_warns_where_it_is_far_from_one() -> None:
    def said(loss: str, *columns: list[float]) -> list[str]:
        return list(loss_notes(LossSpec(name=loss), dataset(torch.tensor(columns).T, "regression", len(columns)), "x:y"))

    assert said("MSELoss", [-1.0, 3]) == ["of the training targets 'a' has the mean 1 and the deviation 2"]
    told, large = said("MSELoss", [10000.0, 30000], [1, 2])
    assert told.endswith("'a' has the mean 2e+04 and the deviation 1e+04, 'b' has the mean 1.5 and the deviation 0.5")
    assert large.startswith("the numbers of 'a' are far from what a model gives at first: the loss begins at about 2.5e+08")
    assert "(value - mean) / deviation" in large
    assert "begins" not in said("L1Loss", [10000.0, 30000])[1]
    assert "so close together" in said("L1Loss", [0.01, 0.02])[1]
    assert len(said("L1Loss", [0.5, 0.5])) == len(said("PoissonNLLLoss", [100.0, 300])) == 1
    assert said("L1Loss", *[[0.0, 1]] * 8)[0].endswith(" …")


# --- class weights -----------------------------------------------------------------------------------------------------------


def test_balanced_class_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = torch.randint(0, 7, (500,), generator=torch.Generator().manual_seed(0))
    labels[:400] = 3
    weights, (note,) = class_weights(labels, "abcdefg")
    assert weights == pytest.approx(compute_class_weight("balanced", classes=np.arange(7), y=labels.numpy()), rel=1e-5)
    assert "for 'd' to" in note


def test_a_class_without_a_sample_weighs_nothing_and_the_mean_stays_one() -> None:
    labels = torch.tensor([0, 0, 0, 2])
    weights, notes = class_weights(labels, ("cat", "dog", "eel"))
    assert weights == pytest.approx([2 / 3, 0, 2], rel=1e-5)
    assert sum(weights[label] for label in labels) / 4 == pytest.approx(1, rel=1e-5)
    assert notes[1] == "no training image is 'dog': its weight is 0"


def test_balanced_positives_weigh_as_much_as_the_negatives() -> None:
    labels = torch.zeros(300, 4)
    labels[:100, 0] = 1
    labels[0, 1] = 1
    labels[:, 2] = 1
    weights, notes = positive_weights(labels, "abcd")
    assert weights == [2, 299, 1, 1]
    assert "all training images have 'c' or 'd', or none" in notes[1]
    assert "lets single images rule a step" in notes[2]
    assert positive_weights(torch.tensor([0, 0, 0, 1]), "ab")[0] == pytest.approx([1 / 3, 3], rel=1e-5)


def test_balanced_weights_become_numbers_in_the_resolved_spec_and_in_the_loss() -> None:
    data = dataset(torch.tensor([0, 0, 0, 1, 2]))
    for name in ("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss"):
        spec = LossSpec(name=name, weight="balanced")
        resolved = resolve_loss(spec, data)
        assert resolved.keywords == {"weight": pytest.approx([5 / 9, 5 / 3, 5 / 3], rel=1e-5)}
        assert torch.equal(make_loss(spec, data).weight, make_loss(resolved, data).weight)
    spec = LossSpec(pos_weight="balanced")
    assert resolve_loss(spec, OF_TASK["multilabel"]).keywords == {"pos_weight": [1, 1, 1]}
    (note,) = loss_notes(spec, OF_TASK["multilabel"], "timm:x")
    assert note == "loss.pos_weight is balanced: from 1 for 'a' to 1 for 'a'"


@pytest.mark.parametrize("keywords", [{"weight": "balanced"}, {"name": "BCEWithLogitsLoss", "pos_weight": "balanced"}])
def test_what_is_balanced_is_the_training_split(keywords: dict[str, Any]) -> None:
    spec, data = LossSpec(**keywords), dataset(torch.tensor([0, 0, 0, 1, 2]))
    other = replace(data, validation=dataset(torch.tensor([0, 1, 1, 1, 2, 2])).train)
    assert resolve_loss(spec, other) == resolve_loss(spec, data) != resolve_loss(spec, replace(data, train=other.validation))


def test_of_many_classes_balanced_stays_a_word_in_the_spec() -> None:
    labels = torch.arange(101)
    data = replace(dataset(labels), classes=tuple(map(str, range(101))))
    spec = LossSpec(weight="balanced")
    assert resolve_loss(spec, data).keywords == {"weight": "balanced"}
    assert torch.equal(make_loss(spec, data).weight, torch.ones(101))


def test_what_cannot_be_balanced_is_refused() -> None:
    assert refusal("BCEWithLogitsLoss", OF_TASK["multilabel"], weight="balanced")[0] == "/loss/weight"
    assert "NLLLoss (weight)" in refusal("BCEWithLogitsLoss", OF_TASK["multilabel"], weight="balanced")[1]
    assert "the dataset's targets are numbers" in refusal("BCEWithLogitsLoss", OF_TASK["regression"], pos_weight="balanced")[1]
    assert refusal("MSELoss", OF_TASK["multiclass"], weight="balanced")[0] == "/loss/weight"
    assert "a list of numbers or 'balanced', got" in refusal(None, OF_TASK["multiclass"], weight="balancd")[1]


@pytest.mark.parametrize("keywords", [{"weight": [1, 0, 1]}, {"ignore_index": 1}, {"weight": [1, 1, 0], "ignore_index": 1}])
def test_a_split_or_a_step_in_which_nothing_weighs_anything_is_refused(keywords: dict[str, Any]) -> None:
    loss, pointer = LossSpec(name="CrossEntropyLoss", **keywords), f"/loss/{next(iter(keywords))}"
    ones = dataset(torch.ones(4, dtype=torch.int64))
    mixed = dataset(torch.tensor([0, 0, 1, 1, 1, 0]))
    with pytest.raises(SpecError, match="every validation image is of a class that weighs nothing") as refusal:
        make_loss(loss, replace(mixed, validation=ones.train))
    assert refusal.value.faults[0].pointer == pointer
    with pytest.raises(SpecError, match="every training image"):
        make_loss(loss, replace(mixed, train=ones.train))

    def job(size: int, **training: int) -> JobSpec:
        loader = {"batch_size": size, "shuffle": bool(training)}
        parts = {"dataset": {"source": "sklearn:digits"}, "model": {"name": "x:y"}, "loss": loss.model_dump(), "loader": loader}
        return JobSpec.model_validate({**parts, "training": training})

    with pytest.raises(SpecError, match="in step 1 every image is of a class that weighs nothing") as refusal:
        check_steps(make_loss(loss, mixed), job(2), mixed)
    assert refusal.value.faults[0].pointer == pointer
    check_steps(make_loss(loss, mixed), job(3), mixed)
    with pytest.raises(SpecError, match=r"in step \d+ every"):  # in the order of some epoch
        check_steps(make_loss(loss, mixed), job(3, epochs=50), mixed)


# --- keywords ----------------------------------------------------------------------------------------------------------------


def test_a_loss_is_made_with_its_keywords_and_lists_become_tensors() -> None:
    loss = build_loss(LossSpec(label_smoothing=0.1, weight=[1, 2.5, 3]))
    assert isinstance(loss, nn.CrossEntropyLoss)
    assert (loss.label_smoothing, loss.weight.tolist()) == (0.1, [1, 2.5, 3])


@pytest.mark.parametrize(
    ("keywords", "pointer", "message"),
    [
        ({"name": "CrossEntropy"}, "/loss/name", "Did you mean 'CrossEntropyLoss'?"),
        ({"labelsmoothing": 0.1}, "/loss/labelsmoothing", "Did you mean 'label_smoothing'?"),
        ({"label_smoothing": 3}, "/loss/label_smoothing", "must be between 0.0 and 1.0"),
        ({"label_smoothing": "much"}, "/loss/label_smoothing", 'expects float, got "much"'),
        ({"weight": [1, 2]}, "/loss/weight", "2 numbers, but the dataset has 3 classes"),
        ({"weight": ["a"] * 3}, "/loss/weight", "expects a list of numbers"),
        ({"weight": 3}, "/loss/weight", "expects a list of numbers or 'balanced', got 3"),
        ({"weight": [1, -0.5, 1]}, "/loss/weight/1", "a class weighs 0 or more, as far as a float32 goes, got -0.5"),
        ({"name": "BCEWithLogitsLoss", "pos_weight": [1, 2, -1]}, "/loss/pos_weight/2", "got -1"),
        ({"weight": [1e39, 1, 1]}, "/loss/weight/0", "got 1e+39"),
        ({"name": "MultiMarginLoss", "weight": [0, 0, 0]}, "/loss/weight", "all weigh 0: nothing would be learnt"),
        ({"reduction": "sum"}, "/loss/reduction", "only 'mean' is served"),
        ({"name": "KLDivLoss", "reduction": "mean"}, "/loss/reduction", "only 'batchmean' is served"),
        ({"name": "KLDivLoss", "log_target": True}, "/loss/log_target", "probabilities"),
        ({"size_average": True}, "/loss/size_average", "deprecated"),
    ],
)
def test_what_a_loss_cannot_take_is_refused_at_its_place(keywords: dict[str, Any], pointer: str, message: str) -> None:
    at, said = refusal(keywords.pop("name", None), OF_TASK["multiclass"], **keywords)
    assert at == pointer
    assert message in said


def test_reduction_mean_may_be_said() -> None:
    assert isinstance(build_loss(LossSpec(reduction="mean")), nn.CrossEntropyLoss)
    assert check_loss(build_loss(LossSpec()), LossSpec(name="CrossEntropyLoss"), 3, torch.tensor([1])) == "index"
