"""Jobs that diverge, by a real trainer on both stacks: the log, the state, and what lies on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.adjustments import RULES, Adjustment
from store import adjustments, commands, events


def submit(bench: Any, model: str = "Tiny", note: str = "", **parts: Any) -> int:
    return bench.submit(
        dataset={"source": "sklearn:digits", "image_size": 8},
        model={"name": f"python:plugins:{model}", **({"note": note} if note else {})},
        optimizer={"name": "SGD", "lr": 0.1},
        checkpoint={"every": {"steps": 20}, "keep_best": 0},
        **parts,
    )


def ask(bench: Any, job: int, step: int, lr: float) -> None:
    with bench.database.write() as session:
        adjustments.adjust(session, adjustments.open_job(session, job), Adjustment("default", {"lr": lr}, step, "api"))


def look(bench: Any, what: Callable[..., Any], job: int) -> Any:
    with bench.database.read() as session:
        return what(session, job)


def test_a_job_that_goes_back_and_is_killed_before_its_next_checkpoint_is_one_that_was_not(bench: Any, tmp_path: Path) -> None:
    """The lr explodes at step 60, the loss at 61; it is killed at step 73, and the next checkpoint is that of step 80."""
    parts = {
        "training": {"epochs": 2, "divergence": {"non_finite": "rollback", "lr_factor": 1e-30}},
        "schedule": {"name": "MultiStepLR", "per": "step", "milestones": [60], "gamma": 1e30},
    }
    whole, killed = (submit(bench, "KilledOnce", note, **parts) for note in (__file__, str(tmp_path / "killed")))
    for _ in range(3):
        bench.run()

    assert [bench.job(job).state for job in (whole, killed)] == ["succeeded"] * 2
    assert [bench.data(job, "rewound") for job in (whole, killed)] == [[{"to_step": 60}], [{"to_step": 60}] * 2]
    for job in (whole, killed):
        (rule,) = bench.data(job, "rule")
        assert (rule["rule"], rule["action"], rule["step"], rule["value"]) == ("nan", "rollback", 61, "nan")
        assert look(bench, events.firings, job) == [(60, 61, 1)]
        assert [(one.by, one.step, one.factor) for one in look(bench, adjustments.history, job)] == [(RULES, 60, 1e-30)]
        assert look(bench, adjustments.done, job) == []
        assert (bench.job(job).step, bench.job(job).epoch) == (102, 2)
        left = {str(place.relative_to(tmp_path)) for place in (tmp_path / "jobs" / str(job)).glob("*/*")}
        assert left == {data["path"] for data in look(bench, events.checkpoints, job)}
    one, other = (look(bench, events.losses, job) for job in (whole, killed))
    assert one.steps.tolist() == list(range(102))
    assert one.values.tolist() == other.values.tolist()
    for name in ("model.safetensors", "state.safetensors"):
        files = [tmp_path / "jobs" / str(job) / place / name for job, place in ((whole, "1/102.1"), (killed, "2/102"))]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_job_that_pauses_itself_waits_for_a_person_who_mends_it(bench: Any) -> None:
    job = submit(bench, training={"divergence": {"non_finite": "pause"}})
    ask(bench, job, 30, lr=1e30)
    bench.run()

    paused = bench.job(job)
    assert (paused.state, paused.step, paused.failures, paused.best["step"]) == ("paused", 20, 0, 20)
    (rule,) = bench.data(job, "rule")
    assert rule["message"].endswith("paused at step 20; change what it takes, and resume the job")
    assert bench.data(job, "state")[-1]["reason"] == rule["message"]
    assert len(look(bench, events.losses, job)) == 20

    ask(bench, job, 30, lr=0.1)  # what was asked before is done again at its step, and then this
    with bench.database.write() as session:
        commands.resume(session, job, by="api")
    bench.run()
    assert bench.job(job).state == "succeeded"
    assert [data["changes"]["lr"]["to"] for data in bench.data(job, "adjusted")] == [1e30, 1e30, 0.1]
