"""Jobs that diverge, and go back: bit for bit the same, whenever they are killed.

Seven steps an epoch. At its tenth step the schedule multiplies lr by 1e30: the loss of the eleventh is no number.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sklearn import datasets

from core.adjustments import RULES, Adjustment, Adjustments, Told
from core.errors import NonFiniteLossError
from core.events import CheckpointData, Iteration
from core.places import Places
from core.spec import JobSpec
from core.training import readback
from core.training.divergence import HaltedError
from core.training.job import fit
from tests.attempts import Log

BLOWS_UP = {"name": "MultiStepLR", "per": "step", "milestones": [9], "gamma": 1e30}
HEALED = {"non_finite": "rollback", "lr_factor": 1e-30}
Spec = Callable[..., JobSpec]


@pytest.fixture(autouse=True)
def nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some fifty jobs: each would read the digits from text, and wait for the disk at each checkpoint."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(datasets, "load_digits", _digits)


_digits = cache(datasets.load_digits)


@pytest.fixture
def spec(tiny_spec: Spec) -> Spec:
    def make(divergence: Any, *, epochs: int = 2, **parts: Any) -> JobSpec:
        groups = [{"name": "head", "params": "5.*", "lr": 0.02}]
        parts = {
            "loader": {"batch_size": 128},
            "optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.9, "groups": groups},
            "schedule": BLOWS_UP,
            "checkpoint": {"every": {"steps": 2}, "keep_last": 2, "keep_best": 0},
            "training": {"epochs": epochs, "divergence": divergence, "ema": 0.9, "accumulate": 2, "clip_grad_norm": 5.0},
            **parts,
        }
        return tiny_spec(**parts)

    return make


@pytest.fixture(params=[2], ids=["two steps late"])
def lag(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Losses come off the device at once, or as late as on a GPU."""
    monkeypatch.setitem(readback._LAGS, "cpu", request.param)
    return request.param


def kinds(log: Log) -> list[tuple[str, int]]:
    return [(row.kind, row.step) for row in log.of("rewound", "adjusted", "rule")]


@pytest.mark.usefixtures("lag")
def test_it_goes_back_to_a_checkpoint_from_before_and_goes_on_with_a_lower_lr(spec: Spec, places: Places, tmp_path: Path) -> None:
    log = Log(spec(HEALED), tmp_path).run(places)
    assert kinds(log) == [("rewound", 8), ("adjusted", 8), ("adjusted", 8), ("rule", 8)], (
        "that of step 10 has the weights of the trouble"
    )
    (rule,) = log.valid("rule")
    assert (rule["rule"], rule["action"], rule["step"]) == ("nan", "rollback", 10)
    assert rule["message"] == "the loss became nan at step 10, in epoch 2: back to step 8 and every lr times 1e-30 (1 of 3)"
    assert [(data["group"], data["by"], data["factor"]) for data in log.valid("adjusted")] == [
        ("head", RULES, 1e-30), ("default", RULES, 1e-30)
    ]  # fmt: skip
    rates = {data["first"]: data["lr"] for data in log.valid("iterations")}
    assert list(rates) == list(range(14)), "each step once"
    assert (rates[7], rates[8], rates[9]) == (
        {"head": 0.02, "default": 0.01},
        {"head": pytest.approx(2e-32), "default": pytest.approx(1e-32)},
        {"head": pytest.approx(0.02), "default": pytest.approx(0.01)},
    ), "the schedule goes on, below itself"
    assert not list(tmp_path.glob("*/.beginning"))


CUTS = {
    "spike": {"action": "cut_lr", "factor": 1.0001, "window": 4, "patience": 1},
    "non_finite": "rollback",
    "lr_factor": 1e-5,  # one is not enough
    "times": 9,
}


@pytest.mark.parametrize(
    ("lag", "at", "places_of_death"),
    [(0, 11, [(1, -4), (2, 0)]), (2, 13, [(0, 0), (1, 3), (2, -3)])],
    indirect=["lag"],
)
def test_whenever_it_is_killed_nobody_can_tell(
    spec: Spec, places: Places, tmp_path: Path, lag: int, at: int, places_of_death: list[tuple[int, int]]
) -> None:
    """Killed so many events after a firing, or before one, and once more soon after: a dozen short jobs."""
    whole = Log(spec(CUTS), tmp_path / "whole").run(places)
    back = [("rewound", 8), ("adjusted", 8), ("adjusted", 8), ("rule", 8)]
    unmade = [("rule", 14)] if lag else []  # decided at a loss of the last steps, for a step that there is not
    assert kinds(whole) == [*back, *back, ("adjusted", at), ("adjusted", at), ("rule", at), *unmade]
    assert [row.data["action"] for row in whole.of("rule")][3:] == ["none"] * len(unmade)
    story = whole.story()
    fires = [index + 1 for index, row in enumerate(whole.rows) if row.kind == "rule"]
    for events in [fires[which] + more for which, more in places_of_death]:
        killed = Log(spec(CUTS), tmp_path / str(events)).run(places, events).run(places, 6).run(places)
        assert killed.story() == story, f"killed after {events} events"


# --- the last step of an epoch, whose weights no loss but the validation's tells of ---------------------------------------------

BLOWS_UP_LAST = {**BLOWS_UP, "milestones": [6]}
SAID = "the validation's loss became nan after step 6, in epoch 1"


def test_a_step_that_only_the_validation_can_tell_of_stops_the_job_and_its_weights_are_not_kept(
    spec: Spec, places: Places, tmp_path: Path
) -> None:
    log = Log(spec({}, epochs=1, schedule=BLOWS_UP_LAST), tmp_path)
    with pytest.raises(NonFiniteLossError, match=SAID):
        log.run(places)
    assert [(row.kind, row.step) for row in log.rows[-4:]] == [("iterations", 7), ("epoch", 7), ("evaluation", 7), ("rule", 7)]
    assert all(isinstance(data["losses"][0], float) for data in log.valid("iterations"))
    assert log.valid("epoch")[0]["validation"]["loss"] == "nan"
    (rule,) = log.valid("rule")
    assert (rule["rule"], rule["action"], rule["step"], rule["value"], rule["message"]) == ("nan", "stop", 7, "nan", SAID)


@pytest.mark.usefixtures("lag")
def test_a_validation_that_is_no_number_goes_back_and_whenever_it_is_killed_nobody_can_tell(
    spec: Spec, places: Places, tmp_path: Path
) -> None:
    """Twice, as one cut is not enough. Killed before the firing, with the figures told already, and after it."""
    job = spec({**HEALED, "lr_factor": 1e-15}, schedule=BLOWS_UP_LAST)
    whole = Log(job, tmp_path / "whole").run(places)
    assert kinds(whole) == [("rewound", 6), ("adjusted", 6), ("adjusted", 6), ("rule", 6)] * 2
    assert [data["step"] for data in whole.valid("rule")] == [7, 7]
    assert [data["validation"]["loss"] == "nan" for data in whole.valid("epoch")] == [False, False]
    fires = [index + 1 for index, row in enumerate(whole.rows) if row.kind == "rule"]
    for events in (fires[0] - 4, fires[1] + 3):
        killed = Log(job, tmp_path / str(events)).run(places, events).run(places)
        assert killed.story() == whole.story(), f"killed after {events} events"


def test_it_pauses_before_a_validation_that_is_no_number(spec: Spec, places: Places, tmp_path: Path) -> None:
    log = Log(spec({"non_finite": "pause"}, schedule=BLOWS_UP_LAST), tmp_path)
    with pytest.raises(HaltedError, match=f"{SAID}: paused at step 6"):
        log.run(places)
    assert kinds(log) == [("rewound", 6), ("rule", 6)]


def test_without_a_checkpoint_from_before_it_goes_back_to_its_beginning(spec: Spec, places: Places, tmp_path: Path) -> None:
    seldom = {"every": {"steps": 100}, "keep_best": 0}
    log = Log(spec(HEALED, checkpoint=seldom), tmp_path / "a").run(places)
    assert kinds(log) == [("rewound", 0), ("adjusted", 0), ("adjusted", 0), ("rule", 0)]
    lower = {
        "name": "SGD",
        "lr": 0.01 * 1e-30,
        "momentum": 0.9,
        "groups": [{"name": "head", "params": "5.*", "lr": 0.02 * 1e-30}],
    }
    other = Log(spec({}, checkpoint=seldom, optimizer=lower), tmp_path / "b").run(places)
    assert [data["losses"] for data in log.valid("iterations")] == [data["losses"] for data in other.valid("iterations")]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(spec: Spec, places: Places, tmp_path: Path) -> None:
    checkpoint = {"every": {"steps": 2}, "keep_last": 3, "keep_best": 0}
    log = Log(spec(HEALED, checkpoint=checkpoint), tmp_path)
    log.run(places, events=16)
    assert log.kept()[0].name == "8"
    with (tmp_path / "1/6/model.safetensors").open("r+b") as file:
        file.write(b"damaged")
    with (tmp_path / "1/8/model.safetensors").open("r+b") as file:
        file.write(b"damaged")
    log.run(places)
    assert [row.step for row in log.of("rewound")] == [4, 8], "what was damaged is written again"


def test_what_it_writes_after_it_went_back_replaces_nothing_that_the_log_tells_of(
    spec: Spec, places: Places, tmp_path: Path
) -> None:
    job = spec(HEALED, checkpoint={"every": {"steps": 2}, "keep_last": 3, "keep_best": 0})
    told: list[str] = []
    for item in fit(job, places, tmp_path / "job"):
        if not isinstance(item, Iteration) and isinstance(item[1], CheckpointData):
            told.append(item[1].path)
            if item[1].path == "8":
                (tmp_path / "job/8/model.safetensors").write_bytes(b"damaged")
    assert told == ["2", "4", "6", "8", "10", "8.1", "10.1", "12.1", "14.1"]
    assert (tmp_path / "job/8/model.safetensors").read_bytes() == b"damaged"


HIGH_LAST = {"name": "MultiStepLR", "per": "step", "milestones": [12], "gamma": 1e4}


@pytest.mark.parametrize("lag", [0], indirect=True)
@pytest.mark.parametrize(
    ("schedule", "times", "said"),
    [
        (HIGH_LAST, 14, "the job ends before that"),
        ({**HIGH_LAST, "milestones": [12, 13], "gamma": 1e12}, 14, "what follows came before that"),
    ],
)
def test_a_spike_that_nothing_can_be_done_about_any_more_is_told(
    spec: Spec, places: Places, tmp_path: Path, lag: int, schedule: dict[str, Any], times: int, said: str
) -> None:
    del lag
    rules = {"spike": {"action": "cut_lr", "factor": 2, "window": 4, "patience": 1}}
    log = Log(spec(rules, schedule=schedule), tmp_path)
    with suppress(NonFiniteLossError):
        log.run(places)
    rule = log.valid("rule")[0]
    assert (rule["rule"], rule["action"], rule["step"]) == ("spike", "none", 13)
    assert rule["message"].endswith(f"no lr was cut, as {said}")
    assert log.of("rule")[0].step == times


# --- what people have changed --------------------------------------------------------------------------------------------------

STEEP = Adjustment("head", {"lr": 1e60}, 9, "api", 7)


def people(*adjustments: Adjustment) -> dict[str, Adjustments]:
    asked = Adjustments()
    for one in adjustments:
        asked.ask(one)
    return {"adjustments": asked}


def test_a_rollback_cuts_what_people_have_asked_of_lr_beyond_it_too_and_whenever_it_is_killed_nobody_can_tell(
    spec: Spec, places: Places, tmp_path: Path
) -> None:
    """1e60 times 1e-15 is still too much for a float32; it heals at the second time."""
    job = spec({**HEALED, "lr_factor": 1e-15}, schedule=None)
    whole = Log(job, tmp_path / "whole").run(places, **people(STEEP))
    told = [(row.step, row.data["by"], row.data["changes"]["lr"]["to"]) for row in whole.of("adjusted")]
    assert [(step, lr) for step, by, lr in told if by == "api"] == [(9, 1e60), (9, 1e60 * 1e-15), (9, 1e60 * 1e-15 * 1e-15)]
    assert kinds(whole).count(("rule", 8)) == 2
    places_of_death = [index for index, row in enumerate(whole.rows) if row.kind in ("adjusted", "rule", "rewound")]
    for events in {place + more for place in places_of_death for more in (1, 2)}:
        killed = Log(job, tmp_path / str(events)).run(places, events, **people(STEEP))
        if not any(row.data.get("by") == "api" for row in killed.of("adjusted")):
            continue  # nobody knows yet what was asked for
        assert killed.run(places).story() == whole.story(), f"killed after {events} events"


def test_a_newer_change_takes_the_place_of_what_would_come_again(spec: Spec, places: Places, tmp_path: Path) -> None:
    log = Log(spec({"non_finite": "pause"}, schedule=None), tmp_path)
    with pytest.raises(HaltedError, match="paused at step 8"):
        log.run(places, **people(STEEP))
    told = Adjustments(Told(log.of(*Told.kinds)).history())
    told.ask(Adjustment("head", {"lr": 0.01}, None, "api", 8))
    log.run(places, adjustments=told)
    *_, newer, older = log.of("adjusted")
    assert (newer.step, newer.data["id"], older.step, older.data["id"]) == (8, 8, 8, 7)
    assert older.data["refused"] == "it was to be done again at its step; a newer change of the same has taken its place"
    assert Told(log.of(*Told.kinds)).void() == []
    assert log.valid("epoch")[-1]["epoch"] == 1, "it ended well"


@pytest.mark.parametrize(("keep_last", "step"), [(2, 8), (1, 0)])
def test_it_pauses_at_the_last_good_checkpoint(spec: Spec, places: Places, tmp_path: Path, keep_last: int, step: int) -> None:
    checkpoint = {"every": {"steps": 2}, "keep_last": keep_last, "keep_best": 0}
    log = Log(spec({"non_finite": "pause"}, checkpoint=checkpoint), tmp_path)
    with pytest.raises(HaltedError, match=f"the loss became nan at step 10, in epoch 2: paused at step {step}"):
        log.run(places)
    assert kinds(log) == [("rewound", step), ("rule", step)]
    again = "rules have acted 3 times before"
    for _ in range(2):
        with pytest.raises(HaltedError):
            log.run(places)
    with pytest.raises(NonFiniteLossError, match=again):
        log.run(places)
    assert [(data["action"], again in data["message"]) for data in log.valid("rule")] == [("pause", False)] * 3 + [("stop", True)]


def test_where_nothing_helps_it_fails_and_says_so(spec: Spec, places: Places, tmp_path: Path) -> None:
    log = Log(spec({"non_finite": "rollback", "lr_factor": 0.5, "times": 2}), tmp_path)
    with pytest.raises(NonFiniteLossError, match="allows no more"):
        log.run(places)
    assert [(data["action"], data["message"][-8:]) for data in log.valid("rule")][:2] == [
        ("rollback", "(1 of 2)"), ("rollback", "(2 of 2)")
    ]  # fmt: skip
    assert log.valid("rule")[2]["action"] == "stop"


def test_what_a_person_changed_before_the_checkpoint_holds_and_what_came_after_it_is_done_again(
    spec: Spec, places: Places, tmp_path: Path
) -> None:
    asked = Adjustments()
    asked.adjust("head", at_step=3, weight_decay=0.1)
    asked.adjust("head", at_step=9, momentum=0.5)
    log = Log(spec(HEALED), tmp_path).run(places, adjustments=asked)
    assert [(row.data["group"], row.step, row.data["by"]) for row in log.of("adjusted")] == [
        ("head", 3, "code"), ("head", 9, "code"), ("head", 8, RULES), ("default", 8, RULES), ("head", 9, "code")
    ]  # fmt: skip
    assert [(one.step, one.by) for one in asked.done] == [(3, "code"), (8, RULES), (8, RULES), (9, "code")]
