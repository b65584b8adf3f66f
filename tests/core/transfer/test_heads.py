"""The head: kept, started anew, or filled row by row for the classes that both sides have."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.events import TransferData
from core.places import Places
from core.transfer.heads import Head
from core.transfer.sources import read

Graft = Callable[..., TransferData]
Faults = Callable[..., dict[str, str]]
HEAD = Head(frozenset({"fc.weight", "fc.bias"}), ("fc",))
PETS = ("beagle", "Persian_cat", "tabby")
THEIRS = ("tench", "beagle", "tabby", "Persian cat")


def net(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(OrderedDict(body=nn.Linear(4, 5), fc=nn.Linear(5, classes)))


def state(classes: int = 4) -> dict[str, Tensor]:
    return dict(net(classes).state_dict())


def test_rows_go_to_the_classes_of_the_same_name(graft: Graft) -> None:
    model, source = net(), state()
    report = graft(model, source, HEAD, PETS, theirs=THEIRS, head="rows")
    assert torch.equal(model.fc.weight, source["fc.weight"][[1, 3, 2]])
    assert torch.equal(model.fc.bias, source["fc.bias"][[1, 3, 2]])
    row = next(one for one in report.targets if one.key == "fc.weight")
    assert (row.status, row.adapter, row.source_shape, row.shape) == ("adapted", "head_rows", [4, 5], [3, 5])
    assert row.reason == "3 of 3 rows by the names of their classes"
    assert report.totals["adapted"].tensors == 2


def test_classes_that_the_source_does_not_know_start_anew_and_are_named(graft: Graft) -> None:
    model = net(4)
    before, source = model.fc.weight.clone(), state()
    report = graft(model, source, HEAD, ("beagle", "poodle", "tabby", "shiba"), theirs=THEIRS, head="rows")
    assert torch.equal(model.fc.weight[[0, 2]], source["fc.weight"][[1, 2]])
    assert torch.equal(model.fc.weight[[1, 3]], before[[1, 3]])
    reasons = {one.reason for one in report.targets if one.adapter == "head_rows"}
    assert reasons == {"2 of 4 rows by the names of their classes; anew: poodle, shiba"}


def test_a_class_may_be_mapped_to_another_name_or_to_a_row(graft: Graft) -> None:
    model, source = net(), state()
    wish = {"head": "rows", "class_map": {"hound": "beagle", "fish": 0}}
    graft(model, source, HEAD, ("hound", "fish", "tabby"), theirs=THEIRS, **wish)
    assert torch.equal(model.fc.weight, source["fc.weight"][[1, 0, 2]])
    graft(model, source, HEAD, ("x", "y", "z"), head="rows", class_map={"x": 3, "y": 2, "z": 1})
    assert torch.equal(model.fc.weight, source["fc.weight"][[3, 2, 1]])


def test_the_spec_may_list_the_sources_classes(graft: Graft, faults_of: Faults) -> None:
    model, source = net(), state()
    graft(model, source, HEAD, PETS, head="rows", classes=list(THEIRS))
    assert torch.equal(model.fc.bias, source["fc.bias"][[1, 3, 2]])
    assert "there are 2 classes, but the source's head has 4 rows" in str(
        faults_of(net(), source, HEAD, PETS, head="rows", classes=["beagle", "tabby"])
    )


@pytest.mark.parametrize(
    ("wish", "pointer", "message"),
    [
        ({"head": "rows", "class_map": {"beagel": "tench"}}, "/pretrained/class_map/beagel", "Did you mean 'beagle'?"),
        ({"head": "rows", "class_map": {"beagle": "tensch"}}, "/pretrained/class_map/beagle", "Did you mean 'tench'?"),
        ({"head": "rows", "class_map": {"beagle": 4}}, "/pretrained/class_map/beagle", "there is no row 4"),
        ({"class_map": {"beagle": "tench"}}, "/pretrained/class_map", "no effect with head 'auto'"),
        ({"head": "rows", "classes": list(THEIRS)}, "/pretrained/classes", "says its own classes (tench, "),
        ({"head": "rows", "drop": ["fc.*"]}, "/pretrained/head", "the source has no 'fc.weight' to take rows from"),
    ],
)  # fmt: skip
def test_what_cannot_be_matched_is_said_at_its_place(wish: dict[str, Any], pointer: str, message: str, faults_of: Faults) -> None:
    assert message in faults_of(net(), state(), HEAD, PETS, theirs=THEIRS, **wish)[pointer]


def test_listed_classes_that_do_not_meet_the_datasets_are_said(faults_of: Faults) -> None:
    found = faults_of(net(), state(), HEAD, PETS, head="rows", classes=["a", "b", "c", "d"])
    assert "no class of the dataset (beagle, Persian_cat, " in found["/pretrained/head"]
    found = faults_of(net(), state(), HEAD, PETS, head="rows", classes=["tabby", "b", "tabby", "d"])
    assert "'tabby' names rows 0 and 2" in found["/pretrained/class_map"]


def test_classes_say_nothing_of_a_head_that_starts_anew(faults_of: Faults) -> None:
    found = faults_of(net(), state(), HEAD, PETS, head="reset", classes=["a"])
    assert "no effect with head 'reset'" in found["/pretrained/classes"]


def test_a_head_that_is_not_known_cannot_start_anew(faults_of: Faults) -> None:
    assert "'reset' has no effect" in faults_of(net(), state(), None, head="reset")["/pretrained/head"]


def test_rows_need_the_names_of_the_sources_classes(faults_of: Faults) -> None:
    found = faults_of(net(), state(), HEAD, PETS, head="rows")
    assert "list them in /pretrained/classes" in found["/pretrained/head"]
    assert "/pretrained/classes" in faults_of(net(), state(), HEAD, PETS, head="rows", class_map={"beagle": "tench"})


def test_rows_need_a_head_that_differs_in_its_classes_alone(faults_of: Faults) -> None:
    wider = state() | {"fc.weight": torch.ones(4, 9), "fc.bias": torch.ones(4, 9)}
    found = faults_of(net(), wider, HEAD, PETS, theirs=THEIRS, head="rows")
    assert "[4, 9] in the source, [3, 5] here" in found["/pretrained/head"]
    assert "not known" in faults_of(net(), state(), None, PETS, theirs=THEIRS, head="rows")["/pretrained/head"]


def test_a_head_of_the_listed_classes_is_loaded_by_itself(graft: Graft) -> None:
    report = graft(net(), state(3), HEAD, PETS, classes=list(PETS))
    assert report.totals["reinit"].tensors == 0


def test_official_weights_know_their_classes(places: Places) -> None:
    source = read("torchvision:resnet18/IMAGENET1K_V1", places.model_copy(update={"download": True}), shapes_only=True)
    assert source.classes is not None
    assert (len(source.classes), source.classes[0]) == (1000, "tench")
