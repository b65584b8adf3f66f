"""Whatever a spec puts together: a job that its plan takes trains to its end, and is the same to the bit, killed or not.

Hypothesis draws the specs, and when a job is killed. Each part has tests of its own; this one is for what they do to each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import datasets

from core.adjustments import Adjustment
from core.errors import DivergedError, SpecError
from core.places import Places
from core.plan import plan
from core.spec import JobSpec
from core.training.divergence import HaltedError
from tests.attempts import Log

MODELS = """
from torch import nn


class Flat(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
            nn.Linear(72, num_classes),
        )


class Deep(nn.Sequential):
    \"\"\"Its features are smaller than an image: where its beginning is frozen, they are kept.\"\"\"

    def __init__(self, num_classes=10):
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 24),
            nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, num_classes),
        )
"""
GROUPS = {"stem": ["0.*"], "norm": ["1.*"], "head": ["5.*"]}


def some(**parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of these parts of a spec, or none."""
    return st.fixed_dictionaries({}, optional=parts)


MOMENTUM = st.sampled_from([
    {"name": "SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True}, {"name": "SGD", "lr": 0.5, "momentum": 0.9},
    {"name": "SGD", "lr": 3.0, "momentum": 0.9}, {"name": "SGD", "lr": 0.05, "momentum": 0.9, "dampening": 0.1},
])  # fmt: skip
OTHERS = st.sampled_from([
    {"name": "SGD", "lr": 0.05}, {"name": "Adam"}, {"name": "Adam", "lr": 0.5}, {"name": "AdamW", "amsgrad": True},
    {"name": "Adam", "foreach": True}, {"name": "RMSprop", "momentum": 0.9, "centered": True}, {"name": "NAdam"},
    {"name": "RAdam"}, {"name": "Adagrad", "lr": 0.05}, {"name": "Adadelta"}, {"name": "ASGD"}, {"name": "Rprop"},
    {"name": "Adamax"}, {"name": "Adafactor"},
])  # fmt: skip
SCHEDULES = st.sampled_from([
    {"name": "CosineAnnealingLR"}, {"name": "OneCycleLR"}, {"name": "ReduceLROnPlateau", "patience": 0},
    {"name": "StepLR", "step_size": 2}, {"name": None, "warmup_steps": 4}, {"name": "ExponentialLR", "gamma": 1.6, "per": "step"},
])  # fmt: skip
FREEZES = st.sampled_from([False, True, {"until_epoch": 1}, {"until_epoch": 2}])
TRAINING = some(
    seed=st.integers(0, 4), accumulate=st.integers(1, 3), clip_grad_norm=st.sampled_from([0.5, 5.0]), ema=st.just(0.9),
    mixup=st.just(0.4), cutmix=st.just(1.0), precision=st.sampled_from(["fp16", "bf16"]), deterministic=st.just(True),
    channels_last=st.booleans(), early_stopping=st.fixed_dictionaries({"patience": st.just(1)}),
    divergence=some(
        non_finite=st.just("rollback"), lr_factor=st.sampled_from([0.5, 0.2]), times=st.sampled_from([1, 3]),
        spike=st.fixed_dictionaries({
            "action": st.sampled_from(["cut_lr", "rollback"]), "factor": st.sampled_from([1.2, 2.0]),
            "window": st.sampled_from([3, 6]), "patience": st.integers(1, 2),
        }),
    ),
)  # fmt: skip
CHANGES = st.one_of(
    some(momentum=st.just(0.5), weight_decay=st.just(0.1)).flatmap(
        lambda more: st.sampled_from([{"lr": 0.001}, {"lr": 0.3}]).map(lambda lr: {**lr, **more})
    ),
    st.sampled_from([{"freeze": True}, {"freeze": False}, {"weight_decay": 0.1}]),
)


@st.composite
def groups(draw: st.DrawFn) -> list[dict[str, Any]]:
    names = draw(st.lists(st.sampled_from(sorted(GROUPS)), unique=True))
    own = st.one_of(st.just({}), some(lr=st.just(0.01), schedule=SCHEDULES))
    return [{"name": name, "params": GROUPS[name], **draw(some(freeze=FREEZES)), **draw(own)} for name in names]


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """Jobs of three epochs of seven steps, or fewer."""
    augment = st.sampled_from(["none", "light", [{"name": "RandomErasing"}, {"name": "TrivialAugmentWide"}]])
    every = st.one_of(st.just("epoch"), st.fixed_dictionaries({"steps": st.sampled_from([1, 2, 5, 9])}))
    loss = st.sampled_from(
        [{"name": "CrossEntropyLoss", "label_smoothing": 0.1, "weight": [1] * 9 + [0]}, {"name": "MultiMarginLoss"}]
    )
    return {
        "dataset": {"source": "sklearn:digits", **draw(some(augment=augment, corrupt=st.just("skip")))},
        "loader": {"batch_size": 256, **draw(some(drop_last=st.just(True), shuffle=st.just(False)))},
        "model": {"name": draw(st.sampled_from(["python:any_job:Flat", "python:any_job:Deep"]))},
        "optimizer": {
            **draw(st.one_of(MOMENTUM, OTHERS)),
            "groups": draw(groups()),
            **draw(some(layer_decay=st.just(0.7))),
        },
        "training": {"epochs": 3, **draw(TRAINING)},
        "checkpoint": {"every": draw(every), "keep_last": draw(st.integers(1, 3)), "keep_best": draw(st.integers(0, 1))},
        **draw(some(schedule=SCHEDULES, loss=loss)),
    }


def adjustments() -> st.SearchStrategy[list[Adjustment]]:
    asked = st.lists(st.tuples(st.sampled_from(["default", *GROUPS]), CHANGES, st.integers(0, 20)), max_size=3)
    return asked.map(lambda ones: [Adjustment(*one, by="api", id=number) for number, one in enumerate(ones, start=1)])


_digits = cache(datasets.load_digits)


@contextmanager
def places(held: bool) -> Iterator[tuple[Places, Path]]:
    """Where a job finds the models, and a folder for it. Nothing waits for the disk."""
    with TemporaryDirectory() as name, patch.object(os, "fsync", lambda _: None), patch.object(datasets, "load_digits", _digits):
        folder = Path(name)
        (folder / "inputs").mkdir()
        (folder / "any_job.py").write_text(MODELS)
        room = {} if held else {"resident_bytes": 0}
        yield Places(inputs=folder / "inputs", cache=folder / "cache", plugins=("any_job",), plugins_dir=folder, **room), folder


@pytest.mark.slow  # eighty specs, three jobs each
@settings(max_examples=80, derandomize=True, database=None)
@given(values=specs(), asked=adjustments(), kills=st.lists(st.integers(1, 60), min_size=1, max_size=2), held=st.booleans())
def test_what_a_plan_takes_trains_to_its_end_and_is_the_same_whenever_it_is_killed(
    values: dict[str, Any], asked: list[Adjustment], kills: list[int], held: bool
) -> None:
    with places(held) as (where, folder):
        try:
            spec = JobSpec.model_validate(values)
            plan(spec, where)
        except (SpecError, ValueError):
            assume(False)
        try:
            whole = Log(spec, folder / "whole").run(where, asked=asked)
        except (DivergedError, HaltedError):  # by its own rules
            return
        killed = Log(spec, folder / "killed")
        for events in kills:
            killed.run(where, events, asked=asked)
        assert told(killed.run(where, asked=asked)) == told(whole)


def told(log: Log) -> dict[str, Any]:
    """Its story, but for what was refused: who goes back behind that does not say it again."""
    story = log.story()
    return {**story, "adjusted": [data for data in story["adjusted"] if not data["refused"]]}
