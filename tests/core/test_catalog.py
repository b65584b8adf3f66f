"""Losses and optimizers by name, and the checks of keywords."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn

from core.catalog import build_loss, catalog_request, check_keywords, check_loss, loss_names
from core.errors import SpecError
from core.spec import LossSpec

LABELS = torch.tensor([3, 1, 4, 1, 5])


def fault(name: str = "CrossEntropyLoss", classes: int = 10, **keywords: Any) -> tuple[str, str]:
    spec = LossSpec(name=name, **keywords)
    with pytest.raises(SpecError) as refused:
        check_loss(build_loss(spec), spec, classes, LABELS)
    (only,) = refused.value.faults
    return only.pointer, only.message


def test_a_loss_is_made_with_its_keywords_and_lists_become_tensors() -> None:
    loss = build_loss(LossSpec(label_smoothing=0.1, weight=[1, 2.5, 3]))
    assert isinstance(loss, nn.CrossEntropyLoss)
    assert (loss.label_smoothing, loss.weight.tolist()) == (0.1, [1, 2.5, 3])


FIT = {"CrossEntropyLoss", "MultiMarginLoss", "NLLLoss"}


@pytest.mark.parametrize("name", loss_names())
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_losses_that_fit_class_index_targets_pass_and_every_other_one_says_which_do(name: str, classes: int) -> None:
    if name in FIT:
        spec = LossSpec(name=name)
        check_loss(build_loss(spec), spec, classes, LABELS % classes)
    else:
        pointer, message = fault(name, classes)
        assert pointer in {"/loss/name", "/loss"}
        assert "Losses that fit: CrossEntropyLoss" in message


@pytest.mark.parametrize(
    ("keywords", "pointer", "message"),
    [
        ({"name": "CrossEntropy"}, "/loss/name", "Did you mean 'CrossEntropyLoss'?"),
        ({"labelsmoothing": 0.1}, "/loss/labelsmoothing", "Did you mean 'label_smoothing'?"),
        ({"label_smoothing": 3}, "/loss/label_smoothing", "must be between 0.0 and 1.0"),
        ({"label_smoothing": "much"}, "/loss/label_smoothing", 'expects float, got "much"'),
        ({"weight": [1, 2]}, "/loss/weight", "2 numbers, but the dataset has 10 classes"),
        ({"weight": ["a"] * 10}, "/loss/weight", "expects a list of numbers"),
        ({"weight": 3}, "/loss/weight", "expects a list of numbers, got 3"),
        ({"reduction": "sum"}, "/loss/reduction", "only 'mean' is served"),
        ({"size_average": True}, "/loss/size_average", "deprecated"),
    ],
)
def test_what_a_loss_cannot_take_is_refused_at_its_place(keywords: dict[str, Any], pointer: str, message: str) -> None:
    at, said = fault(**keywords)
    assert at == pointer
    assert message in said


def test_reduction_mean_may_be_said() -> None:
    assert isinstance(build_loss(LossSpec(reduction="mean")), nn.CrossEntropyLoss)


def constructor(
    rate: float,
    count: int = 1,
    *,
    pair: tuple[int, int] = (1, 2),
    mode: Literal["a", "b"] = "a",
    free: Any = None,
    odd: Callable[[], int] | None = None,
) -> None:
    """Annotated as people annotate."""


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rate": 1, "count": 2, "pair": [3, 4], "mode": "b", "free": {"x": 1}, "odd": None}, None),
        ({"rate": None}, "expects float, got null"),
        ({"rate": True}, "expects float, got true"),
        ({"count": 1.5}, "expects int, got 1.5"),
        ({"pair": [1]}, "expects tuple[int, int], got [1]"),
        ({"mode": "c"}, "expects Literal['a', 'b'], got \"c\""),
        ({"odd": 3}, "got 3"),
        ({"coutn": 3}, "unknown keyword of constructor. Did you mean 'count'?"),
    ],
)
def test_values_are_read_by_the_annotations_as_strictly_as_json(keywords: dict[str, Any], message: str | None) -> None:
    found = check_keywords(constructor, keywords, "/model")
    assert ([message] if message else []) == [fault.message for fault in found] or (message and message in found[0].message)


def test_keywords_of_an_open_constructor_pass_where_that_is_allowed() -> None:
    def open_one(depth: int, **rest: Any) -> None: ...

    assert check_keywords(open_one, {"depth": 1, "other": 2}, "", open_ended=True) == []
    assert [fault.pointer for fault in check_keywords(open_one, {"depth": 1, "other": 2}, "/x")] == ["/x/other"]


def test_annotations_that_cannot_be_read_check_nothing() -> None:
    def strange(depth: "NoSuchType", width: 3 = 3) -> None: ...  # type: ignore[name-defined, valid-type]  # noqa: F821, UP037

    assert check_keywords(strange, {"depth": 1, "width": 2}, "") == []


def test_the_catalog_is_json_and_says_what_is_refused_and_why() -> None:
    catalog = json.loads(json.dumps(catalog_request({})))
    assert catalog["datasets"]["sklearn"] == ["digits"]
    assert "torchvision:resnet50" in catalog["models"]
    assert "torchvision:fcn_resnet50" not in catalog["models"]
    assert "timm:efficientnet_lite0" in catalog["models"]
    assert "timm:gemma4_vit_167m_enc" not in catalog["models"]
    assert "IMAGENET1K_V2" in catalog["pretrained"]["torchvision:resnet50"]
    assert {name for name, loss in catalog["losses"].items() if loss["refused"] is None} == FIT
    assert catalog["losses"]["CrossEntropyLoss"]["keywords"] == {"weight": None, "ignore_index": -100, "label_smoothing": 0.0}
    assert catalog["optimizers"]["Adam"]["keywords"]["betas"] == [0.9, 0.999]
    assert "several times a step" in catalog["optimizers"]["LBFGS"]["refused"]
