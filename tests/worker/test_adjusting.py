"""Changes to parameter groups, from the database to the trainer and back on both stacks.

First with a stand-in for the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.adjustments import Adjustment
from store import adjustments, commands, events


def ask(bench: Any, job: int, step: int | None = None, **changes: Any) -> int:
    with bench.database.write() as session:
        opened = adjustments.open_job(session, job)
        return adjustments.adjust(session, opened, Adjustment("default", changes, step, "api")).id


def open_ones(bench: Any, job: int) -> list[Adjustment]:
    with bench.database.read() as session:
        return adjustments.asked(session, job)


def end(bench: Any, job: int, running: Any, what: Any = commands.cancel) -> None:
    with bench.database.write() as session:
        what(session, job, by="api")
    running.join(60)


def test_a_running_job_is_adjusted_once_each_in_order_and_at_the_step_that_was_asked_for(bench: Any) -> None:
    job = bench.submit()
    running = bench.run_aside("trainers:adjustable")
    bench.wait_for(job, "iterations", seconds=60)
    first, second = ask(bench, job, lr=0.5), ask(bench, job, lr=0.25)
    late = ask(bench, job, step=400, freeze=True)
    bench.wait_for(job, "adjusted", 3, seconds=60)
    end(bench, job, running)

    done = bench.data(job, "adjusted")
    assert [(one["id"], one["changes"]) for one in done] == [
        (first, {"lr": {"from": None, "to": 0.5}}),
        (second, {"lr": {"from": None, "to": 0.25}}),
        (late, {"freeze": {"from": None, "to": True}}),
    ]
    assert done[2]["step"] == 400
    assert open_ones(bench, job) == []
    steps = [event.step for event in bench.log(job, "iterations", "adjusted")]
    assert steps == sorted(steps), "it stands in the log behind the steps before it"


def test_what_a_queued_job_is_asked_is_done_before_its_first_step(bench: Any) -> None:
    job = bench.submit()
    asked = ask(bench, job, lr=0.5)
    running = bench.run_aside("trainers:adjustable")
    bench.wait_for(job, "adjusted", seconds=60)
    end(bench, job, running)

    assert [(one["id"], one["step"]) for one in bench.data(job, "adjusted")] == [(asked, 0)]


def test_what_a_paused_job_is_asked_is_done_when_it_goes_on(bench: Any) -> None:
    job = bench.submit(labels={"from": "3"})
    running = bench.run_aside("trainers:adjustable")
    bench.wait_for(job, "iterations", seconds=60)
    end(bench, job, running, commands.pause)
    asked = ask(bench, job, lr=0.5)
    assert [one.id for one in open_ones(bench, job)] == [asked]
    with bench.database.write() as session:
        commands.resume(session, job, by="api")
    running = bench.run_aside("trainers:adjustable")
    bench.wait_for(job, "adjusted", seconds=60)
    end(bench, job, running)

    assert [(one["id"], one["step"]) for one in bench.data(job, "adjusted")] == [(asked, 3)]


def test_after_a_crash_what_was_done_is_done_again_at_its_step_and_what_was_not_is_not_lost(bench: Any) -> None:
    job = bench.submit(labels={"from": "15", "dies": "30"})
    early, late, open_ = ask(bench, job, step=10, lr=0.5), ask(bench, job, step=20, lr=0.25), ask(bench, job, step=40, lr=0.1)
    bench.run("trainers:adjustable")
    assert bench.job(job).state == "queued"
    assert [(one["id"], one["step"]) for one in bench.data(job, "adjusted")] == [(early, 10), (late, 20)]
    assert [one.id for one in open_ones(bench, job)] == [open_]
    running = bench.run_aside("trainers:adjustable")
    bench.wait_for(job, "adjusted", 4, seconds=60)
    end(bench, job, running)

    assert ("info", f"settled [{early}]") in bench.lines(job), "what the checkpoint has behind it is told again, not done again"
    assert [(one["id"], one["step"]) for one in bench.data(job, "adjusted")][2:] == [(late, 20), (open_, 40)]


# --- the real trainer ----------------------------------------------------------------------------------------------------------


REAL = pytest.mark.parametrize("stack", ["postgres", pytest.param("sqlite", marks=pytest.mark.other_stack)], indirect=True)
"""A trainer knows no database; that either keeps and gives the changes is above."""


def submit(bench: Any, model: str, note: str = "", **parts: Any) -> int:
    return bench.submit(
        dataset={"source": "sklearn:digits", "image_size": 8},
        model={"name": f"python:plugins:{model}", **({"note": note} if note else {})},
        optimizer={"name": "SGD", "lr": 0.1, "groups": [{"name": "head", "params": "fc.*"}]},
        **parts,
    )


@REAL
def test_the_lr_of_a_running_job_changes_at_the_step_that_the_log_tells(bench: Any) -> None:
    job = submit(bench, "Slow", training={"epochs": 99}, schedule={"name": "ExponentialLR", "per": "step", "gamma": 0.999})
    running = bench.run_aside()
    bench.wait_for(job, "iterations", seconds=60)
    with bench.database.write() as session:
        opened = adjustments.open_job(session, job)
        adjustments.adjust(session, opened, Adjustment("head", {"lr": 0.02}, None, "api"))
    bench.wait_for(job, "adjusted", seconds=60)
    step = bench.data(job, "adjusted")[0]["step"]
    later = max(data["first"] + len(data["losses"]) for data in bench.data(job, "iterations")) + 150  # it hears of it before
    ask(bench, job, step=later, freeze=True)
    bench.wait_for(job, "adjusted", 2, seconds=60)
    end(bench, job, running)

    adjusted = bench.data(job, "adjusted")[0]
    assert adjusted["changes"] == {"lr": {"from": pytest.approx(0.1 * 0.999**step), "to": 0.02}}
    rates = {data["first"] + len(data["losses"]) - 1: data["lr"] for data in bench.data(job, "iterations")}
    assert step - 1 in rates, "what comes before the change and what comes after it are told apart"
    for at, lr in rates.items():
        assert lr["default"] == pytest.approx(0.1 * 0.999**at)
        assert lr["head"] == pytest.approx(0.1 * 0.999**at if at < step else 0.02 * 0.999 ** (at - step))
    assert bench.data(job, "adjusted")[1]["step"] == later


@REAL
def test_a_killed_job_does_its_changes_again_and_nobody_can_tell(bench: Any, tmp_path: Path) -> None:
    parts = {"training": {"epochs": 3}, "checkpoint": {"every": {"steps": 10}}}
    jobs = [submit(bench, "KilledOnce", note, **parts) for note in (__file__, str(tmp_path / "killed"))]
    for job in jobs:
        for group, step, changes in [
            ("default", 60, {"momentum": 0.9}),
            ("head", 72, {"lr": 0.5}),
            ("default", 73, {"freeze": True}),
            ("default", 90, {"freeze": False, "weight_decay": 0.01}),
        ]:
            with bench.database.write() as session:
                asked = Adjustment(group, changes, step, "api")
                adjustments.adjust(session, adjustments.open_job(session, job), asked)
    for _ in range(3):
        bench.run()

    whole, killed = jobs
    assert [bench.job(job).state for job in jobs] == ["succeeded"] * 2
    assert bench.data(killed, "rewound") == [{"to_step": 70}]
    assert [data["step"] for data in bench.data(whole, "adjusted")] == [60, 72, 73, 90]
    assert [data["step"] for data in bench.data(killed, "adjusted")] == [60, 72, 73, 72, 73, 90]
    with bench.database.read() as session:
        assert events.losses(session, whole).values.tolist() == events.losses(session, killed).values.tolist()
    for name in ("model.safetensors", "state.safetensors"):
        one, other = (bench.settings.data_dir / "jobs" / f"{job}/{attempt}/153" / name for attempt, job in enumerate(jobs, 1))
        assert one.read_bytes() == other.read_bytes()
