"""The supervisor, with stand-ins for the trainer: what it commits, and how each end is told."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from sandbox import Sandbox
from store import commands, jobs, leases
from store.database import Database
from store.tables import Job
from worker import supervisor as supervising


def test_every_event_is_committed_once_and_in_order(bench: Any) -> None:
    job = bench.submit(labels={"steps": "1000"})
    bench.run("trainers:steady")

    log = bench.log(job)
    assert [event.seq for event in log] == list(range(1, len(log) + 1))
    losses = [loss for data in bench.data(job, "iterations") for loss in data["losses"]]
    assert losses == [1.0 / (step + 1) for step in range(1000)]
    assert [event.kind for event in log][-3:] == ["epoch", "state", "end"]
    assert bench.job(job).state == "succeeded"


def test_losses_that_come_together_are_one_event(bench: Any) -> None:
    job = bench.submit(labels={"steps": "1000"})
    bench.run("trainers:steady")

    assert len(bench.log(job, "iterations")) < 20


def test_a_trainer_is_told_where_it_is(bench: Any, tmp_path: Path) -> None:
    job = bench.submit()
    bench.run("trainers:told")

    directory = tmp_path / "jobs" / str(job) / "1"
    told = [message for _, message in bench.lines(job)]
    assert told == [f"job={job}", "attempt=1", "device=cpu", f"directory={directory}", "resume=None", f"cwd={directory}"]


def test_what_is_printed_is_in_the_log_by_level_progress_bars_too(bench: Any) -> None:
    job = bench.submit()
    bench.run("trainers:talkative")

    assert [message for level, message in bench.lines(job) if level == "info"] == [
        "by print", "by native code", "10%", "20%", "done",
    ]  # fmt: skip
    assert ("warning", "to stderr") in bench.lines(job)


def test_a_flood_of_lines_neither_bloats_the_log_nor_hides_its_end(bench: Any) -> None:
    job = bench.submit()
    started = time.monotonic()
    bench.run("trainers:flood")

    lines = bench.lines(job)
    assert time.monotonic() - started < 60
    assert len(lines) < 3000
    left_out = sum(int(message.split()[0]) for level, message in lines if "left out" in message and level == "warning")
    printed = sum(1 for level, _ in lines if level == "info")
    assert left_out + printed == 200_001


def test_a_crash_is_tried_again_and_ends_as_a_typed_failure_with_the_last_lines(bench: Any) -> None:
    job = bench.submit(resources={"max_attempts": 2})
    bench.run("trainers:abort")
    assert (bench.job(job).state, bench.job(job).failures) == ("queued", 1)
    bench.run("trainers:abort")

    failure = bench.job(job).failure
    assert bench.job(job).state == "failed"
    assert failure["type"] == "crashed"
    assert "SIGABRT" in failure["message"]
    assert failure["lines"][:20] == [f"line {number}" for number in range(10, 30)]
    assert failure["lines"][20] == "Fatal Python error: Aborted"
    assert [data["message"] for data in bench.data(job, "log") if data["message"] == "line 29"] == ["line 29"] * 2


def test_leaving_without_a_last_word_is_a_crash(bench: Any) -> None:
    job = bench.submit(resources={"max_attempts": 1})
    bench.run("trainers:leave")

    assert "exit code 7" in bench.job(job).failure["message"]


def test_a_failure_that_the_trainer_names_is_final_and_carries_its_lines(bench: Any) -> None:
    job = bench.submit()
    bench.run("trainers:fail")

    failure = bench.job(job).failure
    assert bench.job(job).state == "failed"
    assert failure["type"] == "non_finite_loss"
    assert failure["lines"] == ["as a last word"]


@pytest.mark.parametrize("target", ["trainers:obedient", "trainers:stubborn"])
def test_cancel_takes_effect_whatever_the_trainer_does(bench: Any, target: str) -> None:
    job = bench.submit()
    running = bench.run_aside(target)
    bench.wait_for(job, "iterations")
    asked = time.monotonic()
    with bench.database.write() as session:
        commands.cancel(session, job, by="api")
    running.join(60)

    assert bench.job(job).state == "cancelled"
    assert time.monotonic() - asked < 20
    assert bench.log(job)[-1].kind == "end"


def test_a_paused_job_gives_its_slot_up_and_goes_on_when_it_is_resumed(bench: Any) -> None:
    job = bench.submit()
    running = bench.run_aside("trainers:obedient")
    bench.wait_for(job, "iterations")
    asked = time.monotonic()
    with bench.database.write() as session:
        commands.pause(session, job, by="api")
    running.join(60)

    found = bench.job(job)
    assert time.monotonic() - asked < 20
    assert (found.state, found.failures, found.requested, found.lease_owner) == ("paused", 0, None, None)
    assert bench.data(job, "state")[-1]["reason"] == "paused on request"
    assert bench.claim() is None
    with bench.database.write() as session:
        commands.resume(session, job, by="api")
    assert bench.claim().lease.attempt == 2


def test_a_pause_that_is_withdrawn_too_late_puts_the_job_back_into_its_queue(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.submit()
    tell = supervising._tell

    def tell_and_withdraw(child: Any, message: dict[str, Any]) -> None:
        tell(child, message)
        if message["kind"] == "pause":
            with bench.database.write() as session:
                commands.resume(session, job, by="api")

    monkeypatch.setattr(supervising, "_tell", tell_and_withdraw)
    running = bench.run_aside("trainers:obedient")
    bench.wait_for(job, "iterations")
    with bench.database.write() as session:
        commands.pause(session, job, by="api")
    running.join(60)

    assert (bench.job(job).state, bench.job(job).failures) == ("queued", 0)
    assert bench.data(job, "state")[-1]["reason"] == "the pause was withdrawn"


def test_a_cancel_does_not_wait_for_a_pause_to_be_obeyed(bench: Any) -> None:
    job = bench.submit()
    running = bench.run_aside("trainers:stubborn")
    bench.wait_for(job, "iterations")
    with bench.database.write() as session:
        commands.pause(session, job, by="api")
    time.sleep(0.8)  # it has been told
    assert bench.job(job).state == "running"
    with bench.database.write() as session:
        commands.cancel(session, job, by="api")
    running.join(60)

    assert bench.job(job).state == "cancelled"


@pytest.mark.parametrize("target", ["trainers:obedient", "trainers:stubborn"])
def test_a_job_that_has_run_for_its_hours_fails_by_its_time_and_says_what_to_do(bench: Any, target: str) -> None:
    job = bench.submit(resources={"max_hours": 1 / 3600})
    bench.run(target)

    found = bench.job(job)
    assert (found.state, found.failure["type"]) == ("failed", "timeout")
    assert "max_hours" in found.failure["message"]
    assert f"graft fork {job}" in found.failure["hint"]
    assert 1 <= found.ran_seconds < 3


def test_the_hours_are_those_of_all_attempts(bench: Any) -> None:
    job = bench.submit(resources={"max_hours": 1})
    running = bench.run_aside("trainers:obedient")
    bench.wait_for(job, "iterations")
    bench.stop.set()
    running.join(60)
    ran = bench.job(job).ran_seconds
    assert 0 < ran < 120
    with bench.database.write() as session:  # as if it had run for almost all of its hour
        jobs.get(session, job).ran_seconds = 3600 - 0.5
    bench.stop.clear()
    bench.run("trainers:obedient")

    assert bench.job(job).failure["type"] == "timeout"
    assert 3600 <= bench.job(job).ran_seconds < 3600 + 120


def test_a_supervisor_that_lost_its_lease_kills_its_trainer_and_writes_nothing(bench: Any) -> None:
    bench.replace(renew_seconds=0.3)
    job = bench.submit()
    running = bench.run_aside("trainers:obedient")
    bench.wait_for(job, "iterations")
    with bench.database.write() as session:
        assert leases.release(session, "this-worker") == [job]
    other = bench.claim("another-worker")
    running.join(60)

    assert not running.is_alive()
    assert other.lease.attempt == 2
    assert bench.job(job).lease_owner == "another-worker"
    log = bench.log(job)
    lost = next(event.seq for event in log if event.kind == "state" and "queued" in event.data and event.seq > 1)
    assert {event.attempt for event in log if event.seq > lost and event.kind != "state"} == set()


def test_a_late_supervisor_goes_on_if_nobody_took_the_job(bench: Any) -> None:
    bench.replace(lease_seconds=1.2, renew_seconds=2.5)
    job = bench.submit()
    started = time.monotonic()
    running = bench.run_aside("trainers:obedient")
    time.sleep(started + 1.5 - time.monotonic())  # past the lease: the trainer stands still
    standing = bench.job(job).step
    assert standing > 0
    time.sleep(0.3)
    assert bench.job(job).step == standing

    deadline = time.monotonic() + 5
    while bench.job(job).step == standing and time.monotonic() < deadline:
        time.sleep(0.02)
    assert bench.job(job).step > standing
    assert bench.job(job).attempt == 1
    bench.stop.set()
    running.join(60)


def test_a_worker_that_stops_gives_the_job_back_uncounted(bench: Any) -> None:
    job = bench.submit()
    running = bench.run_aside("trainers:obedient")
    bench.wait_for(job, "iterations")
    bench.stop.set()
    running.join(3)

    found = bench.job(job)
    assert (found.state, found.failures, found.lease_owner) == ("queued", 0, None)


def test_a_forged_end_is_refused(bench: Any) -> None:
    job = bench.submit()
    bench.run("trainers:forge")

    assert bench.job(job).state == "failed"
    assert "'end'" in bench.job(job).failure["message"]


def test_a_garbled_channel_is_a_crash_and_not_the_supervisors(bench: Any) -> None:
    job = bench.submit()
    bench.run("trainers:garble")

    assert bench.job(job).failure["type"] == "crashed"
    assert "no JSON at all" in bench.job(job).failure["message"]


def test_checkpoints_keep_to_their_retention(bench: Any, tmp_path: Path) -> None:
    job = bench.submit(checkpoint={"keep_last": 2, "keep_best": 1})
    bench.run("trainers:save")

    left = sorted(path.name for path in (tmp_path / "jobs" / str(job) / "1").iterdir())
    assert left == ["20", "50", "60"]
    assert bench.data(job, "checkpoint")[0]["path"] == f"jobs/{job}/1/10"


def test_a_checkpoint_on_its_way_into_the_log_stays_though_its_step_was_passed_before(bench: Any, tmp_path: Path) -> None:
    job = bench.submit(checkpoint={"keep_last": 1, "keep_best": 0})
    bench.run("trainers:save_and_go_back")

    assert bench.job(job).state == "succeeded"
    assert bench.data(job, "checkpoint")[-1]["path"] == f"jobs/{job}/1/15.1"
    assert [path.name for path in (tmp_path / "jobs" / str(job) / "1").iterdir()] == ["15.1"]


def test_a_checkpoint_outside_its_own_directory_is_a_crash(bench: Any) -> None:
    job = bench.submit()
    bench.run("trainers:stray")

    assert bench.job(job).failure["message"] == "the trainer tells of a checkpoint in '../9/1', which names none"
    assert bench.data(job, "checkpoint") == []


def test_the_next_attempt_is_given_the_checkpoints_and_clears_what_the_last_one_left(bench: Any, tmp_path: Path) -> None:
    job = bench.submit(checkpoint={"keep_last": 2, "keep_best": 0})
    for _ in range(3):
        bench.run("trainers:save_and_die")

    folder = tmp_path / "jobs" / str(job)
    assert f"resume=['{folder}/2/20', '{folder}/1/10']" in [message for _, message in bench.lines(job)]
    assert sorted(str(path.relative_to(folder)) for path in folder.glob("*/*")) == ["1/10", "2/20"]
    assert bench.job(job).state == "succeeded"


def test_the_job_waits_for_a_database_that_is_locked(bench: Any) -> None:
    job = bench.submit(labels={"steps": "50"})
    supervisor = bench.supervisor("trainers:steady")
    other, locked = Database(bench.database.url), threading.Event()

    def lock() -> None:
        with other.write() as session:
            session.execute(update(Job).values(name="locked"))
            locked.set()
            time.sleep(0.5)

    blocker = threading.Thread(target=lock)
    blocker.start()
    assert locked.wait(60)
    supervisor.run()
    blocker.join()
    other.dispose()

    assert bench.job(job).state == "succeeded"
    assert len([loss for data in bench.data(job, "iterations") for loss in data["losses"]]) == 50


def test_a_commit_whose_answer_was_lost_is_not_written_twice(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.submit(labels={"steps": "1000"})
    supervisor = bench.supervisor("trainers:steady")
    write, lost = bench.database.write, []

    class LosesItsAnswer:
        """Commits, and then says that the connection broke: the second time, in the middle of the job."""

        def __init__(self) -> None:
            self.inner = write()

        def __enter__(self) -> Any:
            self.session = self.inner.__enter__()
            return self.session

        def __exit__(self, *error: object) -> None:
            self.inner.__exit__(*error)
            lost.append(self)
            if len(lost) in (2, 3):
                raise OperationalError("COMMIT", {}, ConnectionError("the server closed the connection"))

    monkeypatch.setattr(bench.database, "write", LosesItsAnswer)
    supervisor.run()

    losses = [loss for data in bench.data(job, "iterations") for loss in data["losses"]]
    assert losses == [1.0 / (step + 1) for step in range(1000)]


def test_one_failure_of_the_database_is_not_the_end_of_a_trainer_that_stops(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.submit(labels={"steps": "1000000"})
    running = bench.run_aside("trainers:obedient")
    bench.wait_for(job, "iterations")
    write, failed = bench.database.write, []

    def fails_once() -> Any:
        if not failed:
            failed.append(True)
            raise OperationalError("BEGIN", {}, ConnectionError("the server closed the connection"))
        return write()

    bench.stop.set()
    monkeypatch.setattr(bench.database, "write", fails_once)
    running.join(60)

    found = bench.job(job)
    assert failed
    assert (found.state, found.failures, found.lease_owner) == ("queued", 0, None)


def test_a_killed_trainer_says_who_may_have_done_it(bench: Any) -> None:
    job = bench.submit(resources={"max_attempts": 1})
    supervisor = bench.supervisor("trainers:stubborn")
    spawn, children = bench.sandbox.spawn, []

    def spy(*arguments: Any, **options: Any) -> Any:
        children.append(spawn(*arguments, **options))
        return children[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.sandbox, "spawn", spy)
        thread = threading.Thread(target=supervisor.run)
        thread.start()
        bench.wait_for(job, "iterations")
        signal.pidfd_send_signal(children[0].pidfd, signal.SIGKILL)
        thread.join(60)

    failure = bench.job(job).failure
    assert "SIGKILL" in failure["message"]
    assert "out of memory" in failure["hint"]


def test_when_the_sandbox_dies_the_job_is_tried_again(bench: Any) -> None:
    with closing(Sandbox(import_path=[Path(__file__).parent.parent / "targets"], preload=[])) as bare:
        bench.sandbox = bare
        job = bench.submit(labels={"steps": "3"})
        running = bench.run_aside("trainers:obedient")
        bench.wait_for(job, "iterations")
        os.kill(bare._server._process.pid, signal.SIGKILL)
        running.join(60)

        assert (bench.job(job).state, bench.job(job).failures) == ("queued", 1)
        assert "sandbox died" in bench.log(job)[-1].data
        bench.run("trainers:steady")
    assert bench.job(job).state == "succeeded"


def test_a_sandbox_that_cannot_start_is_a_lost_try_and_not_the_jobs_fault(bench: Any) -> None:
    with closing(Sandbox(preload=["os:abort"])) as broken:
        bench.sandbox = broken
        job = bench.submit(resources={"max_attempts": 1})
        bench.run("trainers:steady")

    assert bench.job(job).failure["type"] == "worker_lost"


@pytest.mark.gpu
def test_a_job_trains_on_a_gpu_of_its_slot(bench: Any) -> None:
    job = bench.submit(dataset={"source": "sklearn:digits", "image_size": 8}, model={"name": "python:plugins:Tiny"})
    bench.run(gpus=["0"])

    assert bench.job(job).state == "succeeded"
