"""What an error advises for `exclude`: it takes out what it is about, and nothing else."""

from __future__ import annotations

import fnmatch
import json
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models import resnet18

from core.errors import TransferError
from core.events import TransferData
from core.shapes import shapes_of
from core.transfer.globs import exclude_of

Graft = Callable[..., TransferData]
Faults = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def keys() -> list[str]:
    return list(shapes_of(resnet18).state_dict())


def advised(message: str) -> list[str]:
    """The list in an error's `"exclude": […]`."""
    globs: list[str] = json.JSONDecoder().raw_decode(message.partition('"exclude": ')[2])[0]
    return globs


@pytest.mark.parametrize(
    "glob",
    ["layer4.*", "*.running_mean", "*.downsample.*", "layer2.*.bias", "layer?.0.conv1.weight", "layer*.bn1.weight", "fc.bias"],
)
def test_one_glob_is_found_for_what_lies_together(glob: str, keys: list[str]) -> None:
    wanted = fnmatch.filter(keys, glob)
    (found,) = advised(exclude_of(wanted, keys))
    assert fnmatch.filter(keys, found) == wanted
    assert len(found) <= len(glob)


def test_the_shortest_glob_is_said(keys: list[str]) -> None:
    assert exclude_of([key for key in keys if key.startswith("layer4.")], keys) == '"exclude": ["layer4.*"]'


def test_where_one_glob_would_take_more_there_are_several(keys: list[str]) -> None:
    wanted = ["layer1.0.conv1.weight", "layer1.1.bn2.bias", "fc.weight"]
    globs = advised(exclude_of(wanted, keys))
    assert len(globs) > 1
    assert {key for glob in globs for key in fnmatch.filter(keys, glob)} == set(wanted)


def test_of_names_that_have_nothing_in_common_the_first_is_said() -> None:
    wanted = [f"{letter}{number}.{letter}" for number, letter in enumerate("abcdef")]
    others = [f"{letter}.{letter}" for letter in "abcdef"] + [f"{letter}9.{letter}" for letter in "abcdef"]
    assert exclude_of(wanted, [*wanted, *others]) == '"exclude": ["a0.a", …]'


def test_names_that_read_as_globs_are_escaped() -> None:
    assert exclude_of(["w[0].a"], ["w[0].a", "w0.a"]) == '"exclude": ["w[[]0].a"]'


@given(st.data(), st.lists(st.lists(st.sampled_from(["a", "b", "ab", "0"]), min_size=1, max_size=4), min_size=1, max_size=12))
def test_what_is_advised_takes_all_of_them_and_no_others(data: st.DataObject, names: list[list[str]]) -> None:
    every = sorted({".".join(name) for name in names})
    wanted = data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    said = exclude_of(wanted, every)
    if "…" not in said:
        assert {key for glob in advised(said) for key in fnmatch.filter(every, glob)} == set(wanted)


def net(width: int) -> nn.Sequential:
    tail = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 3))
    return nn.Sequential(OrderedDict(body=nn.Linear(4, 4), tail=tail))


def test_tensors_that_do_not_fit_start_anew_by_what_the_error_says(graft: Graft, faults_of: Faults) -> None:
    state = dict(net(2).state_dict()) | {"tail.1.bias": torch.ones(5)}
    message = faults_of(net(6), state)["/pretrained/source"]
    assert advised(message) == ["tail.*"]
    report = graft(net(6), state, exclude=advised(message))
    assert {one.key for one in report.targets if one.status == "excluded"} == {key for key in state if key.startswith("tail")}


def test_what_is_excluded_already_may_be_matched_again(faults_of: Faults) -> None:
    state = dict(net(2).state_dict()) | {"tail.1.bias": torch.ones(5)}
    assert advised(faults_of(net(6), state, exclude=["tail.1.weight"])["/pretrained/source"]) == ["tail.*"]


def test_tensors_that_are_not_finite_start_anew_by_what_the_error_says(graft: Graft) -> None:
    state = {key: value * torch.nan if key.startswith("tail") else value for key, value in net(4).state_dict().items()}
    with pytest.raises(TransferError) as refused:
        graft(net(4), state)
    assert advised(str(refused.value.hint)) == ["tail.*"]
    graft(net(4), state, exclude=["tail.*"])
