"""Files of weights: what is read, out of which container, and what is refused. (Formats and damage: test_sources.py.)"""

from __future__ import annotations

import argparse
import collections
import re
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import SpecError
from core.places import Places
from core.transfer.entries import Source
from core.transfer.sources import read
from core.transfer.statefiles import read_file

STATE = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}
AVERAGE = {key: value + 1 for key, value in STATE.items()}


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Source]:
    """What is read of a pickle that holds `content`."""

    def save_and_read(content: Any, container: str | None = None) -> Source:
        torch.save(content, tmp_path / "w.pt")
        return read_file("file:w.pt", tmp_path / "w.pt", "w.pt", shapes_only=True, container=container)

    return save_and_read


@pytest.fixture
def refusal(opened: Callable[..., Source]) -> Callable[..., tuple[str, str]]:
    def of(content: Any, container: str | None = None) -> tuple[str, str]:
        with pytest.raises(SpecError) as refused:
            opened(content, container)
        (fault,) = refused.value.faults
        return fault.pointer, fault.message

    return of


Opened = Callable[..., Source]
Refusal = Callable[..., tuple[str, str]]


def step(source: Source) -> list[tuple[str, str, int]]:
    return [(one.kind, one.detail, one.keys) for one in source.steps]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"epoch": 3, "state_dict": STATE}, "state_dict"),
        ({"model_state_dict": STATE, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}}}, "model_state_dict"),
        ({"model": {"state_dict": STATE, "name": "x"}}, "model.state_dict"),
        ({"iteration": torch.tensor(3), "model": STATE}, "model"),
        ({"backbone_weights": STATE, "epoch": 3}, "backbone_weights"),
        ({"state_dict": STATE, "callbacks": {"Checkpoint": {"best_model_score": torch.tensor(0.5)}}}, "state_dict"),
    ],
)
def test_the_one_state_dict_is_taken_out_of_its_container_and_that_is_said(content: Any, name: str, opened: Opened) -> None:
    source = opened(content)
    assert set(source.entries) == set(STATE)
    assert step(source) == [("container", name, 2)]


def test_a_state_dict_without_a_container_has_no_step(opened: Opened) -> None:
    assert step(opened(STATE)) == []


@pytest.mark.parametrize("content", [{"state_dict": STATE, "state_dict_ema": AVERAGE}, {"student": STATE, "teacher": AVERAGE}])
def test_of_two_none_is_chosen_silently(content: Any, opened: Opened, refusal: Refusal) -> None:
    first, second = content
    pointer, message = refusal(content)
    assert pointer == "/pretrained/source"
    assert f"more than one state dict ({first}, {second})" in message
    assert "say which by 'container'" in message
    assert opened(content, second).tensors()["conv.bias"][0] == 1


def test_an_average_is_taken_only_if_it_is_asked_for(opened: Opened, refusal: Refusal) -> None:
    content = {"epoch": 3, "ema": {"state_dict": AVERAGE}}
    assert 'an average (ema.state_dict), which are taken only if asked for: "container": "ema.state_dict"' in refusal(content)[1]
    assert step(opened(content, "ema.state_dict")) == [("container", "ema.state_dict", 2)]


@pytest.mark.parametrize(
    "name",
    ["params_ema", "module_ema", "ema_model_state", "swa_model", "averaged_model", "modelEMA", "teacher", "run.model-ema2"],
)
def test_an_average_is_known_by_a_word_of_its_name(name: str, opened: Opened, refusal: Refusal) -> None:
    content: Any = AVERAGE
    for part in reversed(name.split(".")):
        content = {"epoch": 3, part: content}
    assert f'"container": "{name}"' in refusal(content)[1]
    assert step(opened(content, name)) == [("container", name, 2)]


def test_a_word_that_only_contains_one_of_an_average_is_none(opened: Opened) -> None:
    assert step(opened({"schema_cinema": STATE})) == [("container", "schema_cinema", 2)]


def test_a_container_that_is_not_there_is_told_those_that_are(refusal: Refusal) -> None:
    pointer, message = refusal({"model": STATE, "ema": AVERAGE}, "models")
    assert (pointer, "Did you mean 'model'?" in message) == ("/pretrained/container", True)
    assert "It has no containers." in refusal(STATE, "model")[1]


def test_containers_are_a_thing_of_pickles(places: Places) -> None:
    save_file(STATE, places.inputs / "w.safetensors")
    for source, message in (
        ("file:w.safetensors", "'select' takes"),
        ("timm:resnet18.a1_in1k", "'select' takes"),
        ("job:3", "has no containers"),
    ):
        with pytest.raises(SpecError, match=message) as refused:
            read(source, places, container="model", shapes_only=True)
        assert refused.value.faults[0].pointer == "/pretrained/container"


def test_every_global_that_a_pickle_must_not_hold_is_named(refusal: Refusal) -> None:
    message = refusal({"state_dict": STATE, "args": argparse.Namespace(lr=1), "counts": collections.deque([1])})[1]
    assert "holds more than tensors (argparse.Namespace, collections.deque)" in message
    assert "save the state_dict() alone" in message


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")  # torch says that it takes a moment
@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.ones(2, 3, device="meta"), "'conv.weight' (no data)"),
        (torch.ones(2, 3).to_sparse(), "'conv.weight' (sparse)"),
    ],
)
def test_what_cannot_be_copied_from_is_refused_before_anything_is_copied(tensor: Tensor, said: str, refusal: Refusal) -> None:
    """A plain `load_state_dict` fails at such a tensor with the modules before it changed."""
    pointer, message = refusal({**STATE, "conv.weight": tensor})
    assert (pointer, said in message) == ("/pretrained/source", True)


def test_pickles_are_read_by_a_torch_whose_unpickler_is_known_to_hold() -> None:
    """CVE-2025-32434 was closed in 2.6, CVE-2026-24747 in 2.10."""
    (floor,) = (found for one in requires("graft") or () if (found := re.match(r"torch>=(\d+)\.(\d+)", one)))
    assert (int(floor[1]), int(floor[2])) >= (2, 10)


def test_the_versions_of_a_state_dicts_modules_are_kept(opened: Opened) -> None:
    versions = opened({"state_dict": nn.Sequential(nn.BatchNorm1d(2)).state_dict()}).versions
    assert versions is not None
    assert versions["0"] == {"version": 2}


def test_extra_state_beside_the_tensors_is_left_out(opened: Opened) -> None:
    source = opened({**STATE, "conv._extra_state": {"calls": 3}})
    assert set(source.entries) == set(STATE)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 46830571\n")
    with pytest.raises(SpecError, match=f"'{name}' is a Git LFS pointer, not the weights; run `git lfs pull`"):
        read_file(f"file:{name}", tmp_path / name, name, shapes_only=True)
