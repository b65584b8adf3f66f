"""Jobs of two ranks in real children, on two CPUs that stand for GPUs: they start, halt and end as one."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sandbox import Limits
from store import commands, events
from worker.crew import Crew
from worker.devices import Slot
from worker.failures import oom_kills
from worker.trainer import failure_of

DIGITS = {"source": "sklearn:digits", "image_size": 8}
TWO = ["cpu", "cpu"]


@pytest.fixture(params=["postgres", pytest.param("sqlite", marks=pytest.mark.other_stack)])
def stack(request: pytest.FixtureRequest, make_stack: Callable[..., Any], tmp_path: Path) -> Any:
    """By default that of hosts with several GPUs. What either makes of a job's events is in tests/worker/test_supervisor."""
    return make_stack(request.param, tmp_path)


def submit(bench: Any, model: str, **parts: Any) -> int:
    name, _, note = model.partition("?")
    keywords = {"note": note} if note else {}
    parts = {"resources": {"gpus": 2}, **parts}
    return bench.submit(dataset=DIGITS, model={"name": f"python:plugins:{name}", **keywords}, **parts)


def losses_of(bench: Any, job: int) -> list[float]:
    with bench.database.read() as session:
        return events.losses(session, job).values.tolist()


def test_a_job_of_two_ranks_has_the_losses_of_one_rank_and_one_log(bench: Any, tmp_path: Path) -> None:
    one, two = submit(bench, "Tiny", resources={"gpus": 1}), submit(bench, "Tiny")
    bench.run(gpus=["cpu"])
    bench.run(gpus=TWO)

    assert bench.job(two).state == "succeeded"
    assert losses_of(bench, two) == pytest.approx(losses_of(bench, one), rel=1e-4)
    kinds = [event.kind for event in bench.log(two) if event.kind not in ("iterations", "log")]
    assert kinds == [event.kind for event in bench.log(one) if event.kind not in ("iterations", "log")]
    assert [path.name for path in (tmp_path / "jobs" / str(two) / "1").iterdir()] == ["51"]


@pytest.mark.parametrize(("gpus", "visible", "devices"), [(["3", "5"], "3,5", ["cuda:0", "cuda:1"]), (TWO, "", ["cpu", "cpu"])])
def test_each_rank_is_told_which_it_is_and_sees_the_gpus_of_the_job(
    bench: Any, gpus: list[str], visible: str, devices: list[str]
) -> None:
    job = submit(bench, "Tiny")
    bench.run("trainers:ranked", gpus=gpus)

    every = f"WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 CUDA_VISIBLE_DEVICES={visible}"
    assert sorted(message for _, message in bench.lines(job)) == [
        f"[rank 1] device={devices[1]} RANK=1 LOCAL_RANK=1 {every}",
        f"device={devices[0]} RANK=0 LOCAL_RANK=0 {every}",
    ]
    assert bench.job(job).state == "succeeded"


def test_a_job_on_one_device_knows_nothing_of_ranks(bench: Any) -> None:
    job = submit(bench, "Tiny", resources={"gpus": 1})
    bench.run("trainers:ranked", gpus=["3"])

    assert [message for _, message in bench.lines(job)] == [
        "device=cuda:0 RANK=None LOCAL_RANK=None WORLD_SIZE=None LOCAL_WORLD_SIZE=None MASTER_ADDR=None CUDA_VISIBLE_DEVICES=3"
    ]


def test_nobody_else_can_take_the_port_on_which_the_ranks_will_meet() -> None:
    told: list[dict[str, str]] = []

    class NoChild:
        pidfd = os.pidfd_open(os.getpid())

        def kill(self) -> None: ...

        def close(self) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.crew._await_death", lambda _: None)
        with Crew(Slot(("0", "1")), lambda environment: told.append(dict(environment)) or NoChild()):  # type: ignore[func-returns-value,arg-type,return-value]
            port = int(told[0]["MASTER_PORT"])
            assert told[1]["MASTER_PORT"] == str(port)
            with pytest.raises(OSError, match="in use"), socket.socket() as other:
                other.bind(("127.0.0.1", port))
            with socket.create_server(("127.0.0.1", port), reuse_port=True):
                socket.create_connection(("127.0.0.1", port)).close()
    os.close(NoChild.pidfd)


@pytest.mark.slow  # three attempts of two processes each
def test_the_death_of_one_rank_ends_all_and_the_job_goes_on_with_each_step_once(bench: Any, tmp_path: Path) -> None:
    parts = {"training": {"epochs": 2}, "checkpoint": {"every": {"steps": 20}}}
    whole = submit(bench, "Tiny", **parts)
    bench.run(gpus=TWO)
    step = random.randrange(1, 102)
    killed = submit(bench, f"KilledRank?{step}:{tmp_path / 'killed'}", **parts)
    bench.run(gpus=TWO)

    found = bench.job(killed)
    assert (found.state, found.failures) == ("queued", 1), f"rank 1 was killed in step {step}"
    assert "SIGKILL" in bench.data(killed, "state")[-1]["reason"]
    bench.run(gpus=TWO)
    assert bench.job(killed).state == "succeeded"
    assert losses_of(bench, killed) == losses_of(bench, whole), f"rank 1 was killed in step {step}"


def test_what_one_rank_raises_is_the_failure_and_not_what_the_others_make_of_it(bench: Any) -> None:
    job = submit(bench, "RaisesOnRank")
    bench.run(gpus=TWO)

    found = bench.job(job)
    assert (found.state, found.failure["message"]) == ("failed", "ZeroDivisionError: by rank 1")
    lines = [message for _, message in bench.lines(job)]
    assert {"pass 3", "[rank 1] pass 3", "[rank 1] ZeroDivisionError: by rank 1"} <= set(lines)


def test_where_all_ranks_have_only_lost_each_other_what_they_saw_is_told(bench: Any) -> None:
    job = submit(bench, "LosesEachOther", resources={"max_attempts": 1})
    bench.run(gpus=TWO)

    said = "DistBackendError: NCCL error: unhandled system error, no space in /dev/shm"
    found = bench.job(job)
    assert (found.state, found.failure["type"]) == ("failed", "crashed")
    assert {said, f"[rank 1] {said}"} <= set(found.failure["lines"])


@pytest.mark.slow  # three attempts of two processes each
def test_a_job_that_is_paused_within_an_epoch_loses_no_step(bench: Any) -> None:
    whole = submit(bench, "Tiny", training={"epochs": 2})
    bench.run(gpus=TWO)
    halted = submit(bench, "Slow", training={"epochs": 2})
    running = bench.run_aside(gpus=TWO)
    bench.wait_for(halted, "iterations", seconds=30)
    with bench.database.write() as session:
        commands.pause(session, halted, by="api")
    running.join(30)

    found = bench.job(halted)
    assert (found.state, found.failures) == ("paused", 0)
    assert 0 < found.step < 51
    assert bench.data(halted, "checkpoint")[-1]["step"] == found.step
    with bench.database.write() as session:
        commands.resume(session, halted, by="api")
    bench.run(gpus=TWO)
    assert bench.data(halted, "rewound") == [{"to_step": found.step}]
    assert sum(len(data["losses"]) for data in bench.data(halted, "iterations")) == 102, "no step was done twice"
    assert losses_of(bench, halted) == losses_of(bench, whole)


@pytest.mark.parametrize("target", [None, "trainers:ranks_stand"])
def test_a_cancel_ends_all_ranks_also_those_that_hear_nothing(bench: Any, target: str | None) -> None:
    job = submit(bench, "Slow", training={"epochs": 50})
    running = bench.run_aside(target, gpus=TWO)
    bench.wait_for(job, "iterations", seconds=30)
    with bench.database.write() as session:
        commands.cancel(session, job, by="api")
    running.join(30)

    assert bench.job(job).state == "cancelled"
    for message in (message for _, message in bench.lines(job) if "pid=" in message):
        assert not Path(f"/proc/{message.partition('pid=')[2]}").exists()


@pytest.mark.slow  # it stands still for a second, twice
def test_past_the_lease_all_ranks_stand_still_with_rank_0(bench: Any) -> None:
    bench.replace(lease_seconds=0.6, renew_seconds=1.5)
    job = submit(bench, "Slow", training={"epochs": 1})
    bench.run(gpus=TWO)

    assert (bench.job(job).state, bench.job(job).attempt) == ("succeeded", 1)
    times = [datetime.fromisoformat(event.at) for event in bench.log(job, "iterations")]
    assert max(later - earlier for earlier, later in pairwise(times)) > timedelta(seconds=0.5), "it stood for a while"


# --- memory --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_memory_that_one_rank_lacks_is_a_typed_failure_and_the_slot_is_free_again(bench: Any, kind: str) -> None:
    job = submit(bench, f"HungryRank?{kind}")
    bench.run(gpus=TWO)

    failure = bench.job(job).failure
    assert failure["type"] == "out_of_memory"
    assert "loader.batch_size" in failure["hint"]
    after = submit(bench, "Tiny")
    bench.run(gpus=TWO)
    assert bench.job(after).state == "succeeded"


def test_a_trainer_that_grows_beyond_its_limit_is_out_of_memory(bench: Any) -> None:
    job = submit(bench, "Growing", resources={"gpus": 1})
    bench.run(gpus=["cpu"], limits=Limits(cores=1, memory=1 << 30))

    assert bench.job(job).failure["type"] == "out_of_memory"


def test_a_trainer_that_the_kernel_killed_for_want_of_memory_says_so_and_another_job_has_its_slot(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's limit, which a test cannot set: here the counter that the kernel keeps of it rises."""
    (tmp_path / "cgroup").write_text("0::/unit\n")
    (tmp_path / "unit").mkdir()
    counter = tmp_path / "unit/memory.events"
    counter.write_text("low 0\noom 0\noom_kill 2\n")

    def kills() -> int:
        found = oom_kills(tmp_path / "cgroup", tmp_path)
        counter.write_text(f"low 0\noom 1\noom_kill {found + 1}\n")
        return found

    job = submit(bench, f"KilledRank?3:{tmp_path / 'killed'}", resources={"gpus": 2, "max_attempts": 1})
    with monkeypatch.context() as patch:
        patch.setattr("worker.supervisor.oom_kills", kills)
        bench.run(gpus=TWO)
    assert bench.job(job).failure["type"] == "out_of_memory"
    assert "smaller dataset.image_size" in bench.job(job).failure["hint"]
    after = submit(bench, "Tiny")
    bench.run(gpus=TWO)
    assert bench.job(after).state == "succeeded"


def test_where_the_kernel_does_not_tell_nobody_was_starved(tmp_path: Path) -> None:
    assert oom_kills(tmp_path / "cgroup", tmp_path) == 0
    (tmp_path / "cgroup").write_text("12:memory:/old\n0::/unit\n")
    assert oom_kills(tmp_path / "cgroup", tmp_path) == 0


def test_torchs_own_error_is_out_of_memory() -> None:
    import torch

    failure = failure_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation …"))
    assert (failure.type, failure.message) == ("out_of_memory", "CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.gpu
def test_a_job_trains_on_two_gpus(bench: Any) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.fail("this test needs two GPUs; leave it out with -k 'not two_gpus'")
    job = submit(bench, "Tiny", training={"epochs": 2})
    bench.run(gpus=["0", "1"])

    assert bench.job(job).state == "succeeded"
