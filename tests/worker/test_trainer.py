"""Real jobs in real children: what core's loop does, seen through the supervisor."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import DataError, SpecError
from sandbox import Limits
from store import commands, events
from worker.trainer import failure_of

DIGITS = {"source": "sklearn:digits", "image_size": 8}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.other_stack)])
def stack(request: pytest.FixtureRequest, make_stack: Callable[..., Any], tmp_path: Path) -> Any:
    """By default one: a trainer knows no database. What either makes of its events is in tests/worker/test_supervisor."""
    return make_stack(request.param, tmp_path)


def losses_of(bench: Any, job: int) -> list[float]:
    with bench.database.read() as session:
        return events.losses(session, job).values.tolist()


def kept_of(bench: Any, job: int) -> list[Path]:
    with bench.database.read() as session:
        return [bench.settings.data_dir / data["path"] for data in events.checkpoints(session, job)]


def submit(bench: Any, model: str, **parts: Any) -> int:
    name, _, note = model.partition("?")
    keywords = {"note": note} if note else {}
    return bench.submit(dataset=DIGITS, model={"name": f"python:plugins:{name}", **keywords}, **parts)


def test_a_job_trains_and_its_log_is_whole(bench: Any, tmp_path: Path) -> None:
    job = submit(bench, "Tiny", training={"epochs": 2}, checkpoint={"keep_best": 0})
    bench.run()

    assert bench.job(job).state == "succeeded"
    assert [event.kind for event in bench.log(job) if event.kind not in ("iterations", "log")] == [
        "state", "state", "transfer", "groups", "epoch", "evaluation", "checkpoint", "epoch", "evaluation", "checkpoint",
        "state", "end",
    ]  # fmt: skip
    assert len(losses_of(bench, job)) == 2 * 51  # 1617 of 1797 samples in batches of 32, every one of them
    (checkpoint,) = (tmp_path / "jobs" / str(job) / "1").iterdir()
    assert (checkpoint / "model.safetensors").stat().st_size > 0


def test_what_the_training_code_prints_stands_between_its_losses(bench: Any) -> None:
    job = submit(bench, "Loud")
    bench.run()

    lines = [message for _, message in bench.lines(job)]
    assert [line for line in lines if line.startswith("pass")] == [f"pass {number}" for number in range(1, 52)]
    assert [line for line in lines if line.startswith("UserWarning: at pass")][1:] == []
    assert "native code complains" in lines
    steps = [event.step for event in bench.log(job, "log") if "pass 4" in event.data]
    assert all(step <= 50 for step in steps)


def test_a_segfault_is_a_typed_failure_with_what_was_printed_before(bench: Any) -> None:
    job = submit(bench, "Segfault", resources={"max_attempts": 1})
    bench.run()

    failure = bench.job(job).failure
    assert (failure["type"], bench.job(job).state) == ("crashed", "failed")
    assert "SIGSEGV" in failure["message"]
    assert "pass 5" in failure["lines"]
    assert any("plugins.py" in line for line in failure["lines"])


def test_an_exception_is_a_crash_that_shows_where(bench: Any) -> None:
    job = submit(bench, "Raises")
    bench.run()

    failure = bench.job(job).failure
    assert failure["type"] == "crashed"
    assert failure["message"] == "ZeroDivisionError: by the plug-in"
    assert any("plugins.py" in line for line in failure["lines"])
    assert ("error", "ZeroDivisionError: by the plug-in") in bench.lines(job)


def test_too_little_memory_says_what_to_make_smaller(bench: Any) -> None:
    job = submit(bench, "Hungry")
    bench.run()

    failure = bench.job(job).failure
    assert failure["type"] == "out_of_memory"
    assert "loader.batch_size" in failure["hint"]


def test_a_loss_that_is_no_number_ends_the_job_and_stands_in_the_log(bench: Any) -> None:
    job = submit(bench, "Diverges")
    bench.run()

    assert bench.job(job).failure["type"] == "non_finite_loss"
    assert "nan" in bench.data(job, "iterations")[-1]["losses"]


def test_a_full_disk_is_a_typed_failure_and_nothing_is_torn(bench: Any, tmp_path: Path) -> None:
    job = submit(bench, "Spill")
    bench.run(limits=Limits(cores=1, file_bytes=1 << 20))

    assert bench.job(job).failure["type"] == "disk_full"
    assert bench.log(job, "checkpoint") == []
    assert list((tmp_path / "jobs" / str(job)).glob("*/*")) == []


def test_a_killed_trainer_goes_on_from_its_checkpoint_with_the_same_losses(bench: Any, tmp_path: Path) -> None:
    whole = submit(bench, "KilledOnce?" + str(Path(__file__)), training={"epochs": 3})
    bench.run()
    killed = submit(bench, f"KilledOnce?{tmp_path / 'killed'}", training={"epochs": 3})
    bench.run()
    assert (bench.job(killed).state, bench.job(killed).failures) == ("queued", 1)
    bench.run()

    assert bench.job(killed).state == "succeeded"
    assert bench.job(killed).attempt == 2
    assert bench.data(killed, "rewound") == [{"to_step": 51}]
    assert losses_of(bench, killed) == losses_of(bench, whole)


def test_a_trainer_killed_within_an_epoch_goes_on_from_its_last_step_checkpoint(bench: Any, tmp_path: Path) -> None:
    parts = {"training": {"epochs": 3}, "checkpoint": {"every": {"steps": 10}}}
    whole = submit(bench, "KilledOnce?" + str(Path(__file__)), **parts)
    bench.run()
    killed = submit(bench, f"KilledOnce?{tmp_path / 'killed'}", **parts)
    bench.run()
    folder = tmp_path / "jobs" / str(killed)
    assert kept_of(bench, killed) == [folder / "1/51", folder / "1/70"], "the best, after the first epoch; the last"
    assert all(path.is_dir() for path in kept_of(bench, killed))
    bench.run()

    assert bench.job(killed).state == "succeeded"
    assert bench.data(killed, "rewound") == [{"to_step": 70}]
    assert losses_of(bench, killed) == losses_of(bench, whole)
    assert [data["mean_loss"] for data in bench.data(killed, "epoch")] == [
        data["mean_loss"] for data in bench.data(whole, "epoch")
    ]
    for name in ("model.safetensors", "state.safetensors"):
        assert (folder / "2/153" / name).read_bytes() == (tmp_path / "jobs" / str(whole) / "1/153" / name).read_bytes()
    assert sorted(folder.glob("*/*")) == sorted(kept_of(bench, killed))


def pause(bench: Any, job: int) -> None:
    with bench.database.write() as session:
        commands.pause(session, job, by="api")


def stop(bench: Any, job: int) -> None:
    bench.stop.set()


@pytest.mark.parametrize(("halt", "state"), [(pause, "paused"), (stop, "queued")])
def test_a_job_that_is_halted_within_an_epoch_loses_no_step(bench: Any, halt: Any, state: str) -> None:
    whole = submit(bench, "Tiny", training={"epochs": 4})
    bench.run()
    halted = submit(bench, "Slow", training={"epochs": 4})
    running = bench.run_aside()
    bench.wait_for(halted, "checkpoint", seconds=30)
    halt(bench, halted)
    running.join(30)
    found = bench.job(halted)
    assert (found.state, found.failures) == (state, 0)
    assert found.step % 51, "the test is of a halt within an epoch"
    assert bench.data(halted, "checkpoint")[-1]["step"] == found.step
    bench.stop.clear()
    if state == "paused":
        with bench.database.write() as session:
            commands.resume(session, halted, by="api")
    bench.run()

    assert (bench.job(halted).state, bench.job(halted).attempt) == ("succeeded", 2)
    assert bench.data(halted, "rewound") == [{"to_step": found.step}]
    assert sum(len(data["losses"]) for data in bench.data(halted, "iterations")) == 204, "no step was done twice"
    assert losses_of(bench, halted) == losses_of(bench, whole)


def test_a_job_that_is_paused_while_it_validates_keeps_the_epoch(bench: Any) -> None:
    job = submit(bench, "SlowToValidate", training={"epochs": 2}, checkpoint={"every": {"steps": 1000}, "keep_best": 0})
    running = bench.run_aside()
    while "validating" not in [message for _, message in bench.lines(job)]:
        assert running.is_alive(), "it was to be paused"
    pause(bench, job)
    running.join(30)

    found = bench.job(job)
    assert (found.state, found.step) == ("paused", 51)
    assert [data["step"] for data in bench.data(job, "checkpoint")] == [51]
    assert [event.kind for event in bench.log(job)].count("evaluation") == 1


@pytest.mark.parametrize(
    "training",
    [{"epochs": 1}, {"epochs": 3, "early_stopping": {"patience": 1, "metric": "top1", "min_delta": 1.0}}],
    ids=["the last epoch", "early stopping"],
)
def test_a_pause_that_is_heard_with_the_last_checkpoint_comes_too_late(bench: Any, training: dict[str, Any]) -> None:
    job = submit(bench, "SlowToValidate", training=training)
    running = bench.run_aside()
    last = 1 if training["epochs"] == 1 else 2  # the first is better than nothing
    while [message for _, message in bench.lines(job)].count("validating") < last:
        assert running.is_alive(), "it was to be paused"
    pause(bench, job)
    running.join(30)

    assert (bench.job(job).state, bench.job(job).step) == ("succeeded", 51 * last)
    assert len(bench.data(job, "rule")) == last - 1


def test_a_gpu_that_cannot_be_used_is_no_fault_of_the_job(bench: Any) -> None:
    job = bench.submit()
    supervisor = bench.supervisor(None, gpus=["99"])
    supervisor.run()

    assert supervisor.device_fault
    assert (bench.job(job).state, bench.job(job).failures) == ("queued", 0)
    assert f"a GPU of this-worker cannot be used: {supervisor.device_fault}" in bench.data(job, "state")[-1]["reason"]


def test_a_failure_is_typed_by_what_it_is() -> None:
    torch_says = RuntimeError("[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory: you tried …")

    assert failure_of(OSError(errno.ENOSPC, "No space left on device")).type == "disk_full"
    assert failure_of(torch_says).type == "out_of_memory"
    assert failure_of(MemoryError()).type == "out_of_memory"
    cublas = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert failure_of(cublas).type == "out_of_memory"
    assert failure_of(DataError("images/3.png is no image")).type == "data"
    assert failure_of(SpecError.at("/dataset/source", "it is gone")).type == "data"
    assert failure_of(SpecError.at("/pretrained/source", "it is gone")).type == "transfer"
    assert failure_of(ValueError("x")).type == "crashed"
    assert "training.deterministic" in failure_of(RuntimeError("put_ does not have a deterministic implementation, but …")).hint
    assert failure_of(ValueError("photo\udcff.png")).message == "ValueError: photo\\udcff.png"


@pytest.mark.parametrize("cause", [DataError("images/3.png is no image")])
def test_a_typed_cause_is_not_hidden_by_what_wraps_it(cause: Exception) -> None:
    wrapped = RuntimeError("DataLoader worker failed")
    wrapped.__cause__ = cause

    assert failure_of(wrapped).type == "data"
