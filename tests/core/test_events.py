"""The events: losses that survive JSON, the fold that gives each step once, and retention."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from core.events import (
    KINDS,
    AdjustedData,
    Change,
    CheckpointData,
    Iteration,
    IterationsData,
    Row,
    best,
    chunk,
    figure,
    fold,
    number,
    present,
    retained,
    shortest,
    without,
)


@given(st.floats(width=32))
def test_a_loss_survives_json_bit_for_bit(value: float) -> None:
    back = np.float32(number(json.loads(json.dumps(shortest(value), allow_nan=False))))
    assert back.tobytes() == np.float32(value).tobytes() or (math.isnan(value) and math.isnan(back))


def test_a_loss_is_as_short_as_it_can_be() -> None:
    assert shortest(float(np.float32(0.1))) == 0.1
    assert [figure(float(text)) for text in ("nan", "inf", "-inf")] == ["nan", "inf", "-inf"]


def test_a_chunk_holds_consecutive_losses_and_the_lr_of_the_last() -> None:
    data = chunk([Iteration(step, 1, step / 4, 32, {"default": step / 10}) for step in range(8, 11)])
    assert data == IterationsData(epoch=1, first=8, losses=[2.0, 2.25, 2.5], lr={"default": 1.0})


def test_every_kind_of_event_has_one_schema_with_no_unknown_keys() -> None:
    assert len(KINDS) == 13
    assert all(kind == data.kind for kind, data in KINDS.items())
    with pytest.raises(ValidationError):
        IterationsData.model_validate({"epoch": 0, "first": 0, "losses": [], "lr": {}, "los": []})


class Log:
    """A log as training writes it: chunks, epochs, checkpoints, and rewinds."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.step = 0

    def add(self, kind: str, data: dict[str, Any]) -> None:
        self.rows.append(Row(len(self.rows) + 1, self.step, kind, data))

    def train(self, losses: list[float]) -> None:
        first, self.step = self.step, self.step + len(losses)
        self.add("iterations", {"epoch": 0, "first": first, "losses": losses, "lr": {}})

    def rewind(self, step: int) -> None:
        self.step = step
        self.add("rewound", {"to_step": step})


def losses_of(rows: list[Row]) -> dict[int, float]:
    steps = [
        (row.data["first"] + i, loss) for row in rows if row.kind == "iterations" for i, loss in enumerate(row.data["losses"])
    ]
    assert len(dict(steps)) == len(steps), "each step once"
    return dict(steps)


ACTIONS = st.lists(st.integers(1, 5) | st.floats(0, 1) | st.sampled_from(["epoch", "checkpoint", "log"]), max_size=25)


@given(ACTIONS)
def test_the_fold_has_each_step_once_as_it_was_trained_last(actions: list[int | float | str]) -> None:
    log, truth = Log(), {}
    for number_of_it, action in enumerate(actions):
        if isinstance(action, str):
            log.add(action, {"step": log.step})
        elif isinstance(action, int):
            losses = [number_of_it + index / 10 for index in range(action)]
            truth.update({log.step + index: loss for index, loss in enumerate(losses)})
            log.train(losses)
        else:
            log.rewind(int(action * log.step))
            truth = {step: loss for step, loss in truth.items() if step < log.step}
    folded = fold(log.rows)
    assert losses_of(folded) == truth
    assert [row.seq for row in folded] == sorted(row.seq for row in folded)
    assert sum(row.kind == "log" for row in folded) == sum(row.kind == "log" for row in log.rows), "what was said stays said"


def test_a_rewind_cuts_the_chunk_that_spans_it_and_voids_epochs_and_checkpoints_beyond() -> None:
    log = Log()
    log.train([1, 2, 3])
    log.add("checkpoint", {"step": 3})
    log.train([4, 5])
    log.add("epoch", {"epoch": 0})
    log.rewind(4)
    log.train([50])
    folded = fold(log.rows)
    assert losses_of(folded) == {0: 1, 1: 2, 2: 3, 3: 4, 4: 50}
    assert [row.kind for row in folded] == ["iterations", "checkpoint", "iterations", "rewound", "iterations"]
    assert folded[2].step == 4


def test_a_rewind_to_a_checkpoint_keeps_it() -> None:
    log = Log()
    log.train([1, 2])
    log.add("checkpoint", {"step": 2})
    log.rewind(2)
    assert [row.kind for row in fold(log.rows)] == ["iterations", "checkpoint", "rewound"]


def test_a_rewind_voids_the_adjustments_beyond_it_and_keeps_those_at_its_very_step() -> None:
    log = Log()
    log.train([1, 2])
    log.add("adjusted", {"id": 1})
    log.train([3])
    log.add("adjusted", {"id": 2})
    log.rewind(2)
    log.train([3])
    log.add("adjusted", {"id": 2})
    assert [(row.step, row.data["id"]) for row in fold(log.rows) if row.kind == "adjusted"] == [(2, 1), (3, 2)]


def adjusted(group: str, step: int, **changes: Any) -> dict[str, Any]:
    told = {key: Change(before=None, to=value) for key, value in changes.items()}
    return AdjustedData(id=1, group=group, step=step, changes=told, by="api").model_dump(mode="json")


def test_the_groups_of_now_have_what_was_adjusted_last_and_the_lr_of_the_last_step() -> None:
    row = {"hyperparameters": {"lr": 1.0, "momentum": 0.0}, "frozen": True, "until_epoch": 1, "schedule": None}
    parameters = [
        {"group": "a/part", "frozen": "group"},
        {"group": "a/part", "frozen": "model"},
        {"group": "b", "frozen": "group"},
    ]
    table = {"groups": [{**row, "name": "a/part", "of": "a"}, {**row, "name": "b", "of": "b"}], "parameters": parameters}
    told = [adjusted("a", 3, lr=5.0, momentum=0.5, freeze=False), adjusted("a/part", 7, momentum=0.9)]

    def now(step: int, epoch: int = 0) -> list[tuple[Any, ...]]:
        found = present(table, epoch, {"a/part": 4.0, "b": 0.5}, step=step, adjusted=told)
        assert [one["frozen"] for one in found["parameters"]][1] == "model"
        return [(*one["present"].values(), one["frozen"], one["until_epoch"]) for one in found["groups"]]

    assert now(3) == [(5.0, 0.9, False, None), (0.5, 0.0, True, 1)], "no step has used the new lr yet"
    assert now(8) == [(4.0, 0.9, False, None), (0.5, 0.0, True, 1)], "a schedule has gone on from it"
    assert now(8, epoch=1)[1] == (0.5, 0.0, False, 1)


def checkpoint(step: int, **figures: Any) -> dict[str, Any]:
    return CheckpointData(step=step, epoch=step, figures=figures, best=False, path=str(step), sha256="", bytes=1).model_dump()


def test_the_last_and_the_best_are_kept() -> None:
    made = [checkpoint(step, top1=top1, loss=1 - top1) for step, top1 in enumerate([0.5, 0.9, 0.7, 0.9, 0.6])]
    assert retained(made, keep_last=1, keep_best=1, metric="top1") == [1, 4]
    assert retained(made, keep_last=2, keep_best=2, metric="loss") == [1, 3, 4]
    assert retained(made, keep_last=1, keep_best=0, metric="top1") == [4]
    assert (best(made, "top1") or {})["step"] == 1, "the earlier of equals"


def test_a_figure_that_is_no_number_is_the_worst() -> None:
    made = [checkpoint(1, loss="nan"), checkpoint(2, loss="inf"), checkpoint(3, loss=9.0), checkpoint(4, loss="nan")]
    assert retained(made, keep_last=1, keep_best=1, metric="loss") == [3, 4]


def test_a_figure_that_is_no_number_is_never_the_best() -> None:
    broken = [checkpoint(2, mean_loss=0.1, loss="nan"), checkpoint(3, mean_loss=0.1, loss="inf")]
    assert best(broken, "loss") is None
    assert (best([checkpoint(1, mean_loss=0.3), *broken], "loss") or {})["step"] == 1, "though it was not validated"
    assert retained([checkpoint(1, mean_loss=0.3), *broken], keep_last=1, keep_best=1, metric="loss") == [1, 3]


def test_without_validation_the_mean_loss_says_which_is_best() -> None:
    made = [checkpoint(1, mean_loss=0.3), checkpoint(2, mean_loss=0.1), checkpoint(3, mean_loss=0.2)]
    assert (best(made, "top1") or {})["step"] == 2
    assert best([], "top1") is None


def test_what_was_not_validated_is_never_better_than_what_was() -> None:
    made = [checkpoint(1, mean_loss=0.1), checkpoint(2, mean_loss=0.05), checkpoint(3, mean_loss=9.0, top1=0.1, loss=8.0)]
    assert (best(made[:2], "top1") or {})["step"] == 2, "until something is, it goes by its mean loss"
    for metric in ("top1", "loss"):
        assert (best(made, metric) or {})["step"] == 3
        assert retained([*made, checkpoint(4, mean_loss=0.01)], keep_last=1, keep_best=1, metric=metric) == [3, 4]


FIGURES = st.floats(0, 1) | st.sampled_from(["nan", "inf"])


@given(st.lists(FIGURES, max_size=12), st.integers(1, 4), st.integers(0, 4), st.sampled_from(["top1", "loss"]))
def test_retention_keeps_no_more_than_it_says_and_never_loses_the_best(
    figures: list[float | str], keep_last: int, keep_best: int, metric: str
) -> None:
    made = [checkpoint(step, **{metric: value}) for step, value in enumerate(figures)]
    kept = retained(made, keep_last, keep_best, metric)
    assert kept == sorted(set(kept))
    assert len(kept) <= keep_last + keep_best
    assert set(range(len(made))[-keep_last:]) <= set(kept)
    leading = best(made, metric)
    assert (leading is None) == all(value in {"nan", "inf"} for value in figures)
    if keep_best and leading:
        assert leading["step"] in kept
    again = retained([made[step] for step in kept], keep_last, keep_best, metric)
    assert again == kept, "pruning twice removes nothing more"


def test_a_step_goes_without_what_the_log_says_until_training_goes_back() -> None:
    def said(since: int, *samples: int, split: str = "training") -> Row:
        return Row(0, since, "left_out", {"split": split, "since": since, "samples": list(samples)})

    def back(step: int) -> Row:
        return Row(0, step, "rewound", {"to_step": step})

    rows = [said(0, 1, 2), said(0, 9, split="validation"), said(10, 3), back(6), said(6, 2)]
    assert [without(rows, step) for step in (0, 5, 6, 12)] == [{1, 2}, {1, 2}, {2}, {2}]
    assert without(rows[:3], 10) == {1, 2, 3}
