"""What a spec may name, and the checks of keywords."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import pytest

from core.catalog import catalog_request
from core.keywords import check_keywords


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
        ({"rate": "1e-3"}, 'expects float, got the text "1e-3": leave its quotes out'),
        ({"rate": "fast"}, 'expects float, got "fast"'),
        ({"batch_size": 3}, "unknown keyword of constructor. It belongs to /loader/batch_size."),
        ({"lr": 0.1}, "unknown keyword of constructor. It belongs to /optimizer/lr."),
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
    losses = catalog["losses"]
    assert losses["SoftMarginLoss"]["targets"] == {
        "multiclass": "1 for the class, -1 for the others", "multilabel": "-1 or 1 for each label",
    }  # fmt: skip
    assert losses["SoftMarginLoss"]["unfit"] == {"regression": "it tells classes apart"}
    assert losses["GaussianNLLLoss"]["refused"] == "it needs a variance beside each output, which no model here gives"
    assert all(loss["refused"] is None for loss in losses.values() if loss["targets"])
    assert catalog["losses"]["CrossEntropyLoss"]["keywords"] == {"weight": None, "ignore_index": -100, "label_smoothing": 0.0}
    assert catalog["optimizers"]["Adam"]["keywords"]["betas"] == [0.9, 0.999]
    assert "several times a step" in catalog["optimizers"]["LBFGS"]["refused"]
