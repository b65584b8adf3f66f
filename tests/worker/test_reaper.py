"""What a worker does beside its jobs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from store import commands, deletion, jobs, leases, pins, workers
from store.hints import TASK, Hints
from store.pins import Pin
from worker.devices import Devices
from worker.reaper import Reaper
from worker.runner import Runner


@pytest.fixture
def runner(bench: Any) -> Iterator[Runner]:
    bench.replace(worker_name="this-worker", lease_seconds=0.05)
    made = Runner(bench.settings, bench.database, bench.sandbox, Devices([], cpu_slots=1))
    yield made
    made.close()


class Away:
    """Hints to a broker that is away."""

    def __init__(self) -> None:
        self.queues: list[str] = []

    def send(self, queue: str) -> bool:
        self.queues.append(queue)
        return False


@pytest.fixture
def reaper(runner: Runner) -> Reaper:
    return Reaper(runner, Hints(runner.settings.broker), leave=lambda: None)


def test_a_job_whose_worker_was_not_heard_of_is_taken_back_and_hinted_at_again(
    bench: Any, reaper: Reaper, receive: Callable[..., Any]
) -> None:
    job = bench.submit(resources={"queue": "default", "max_attempts": 3})
    bench.claim("a-dead-worker")
    time.sleep(0.1)
    reaper.reap()

    assert (bench.job(job).state, bench.job(job).failures) == ("queued", 1)
    assert [task for task, _ in receive(bench.settings.broker, "default", 1)] == [TASK]


def test_each_queue_with_waiting_jobs_is_hinted_at_once(bench: Any, reaper: Reaper, receive: Callable[..., Any]) -> None:
    for queue in "a", "b", "b":
        bench.submit(resources={"queue": queue})
    reaper.reap()

    assert len(receive(bench.settings.broker, "a", 1)) == 1
    assert len(receive(bench.settings.broker, "b", 2, seconds=0.5)) == 1


def test_a_broker_that_is_away_is_asked_once_a_round_however_many_queues_wait(bench: Any, runner: Runner) -> None:
    for queue in "a", "b", "c":
        bench.submit(resources={"queue": queue})
    hints = Away()
    Reaper(runner, hints, leave=lambda: None).reap()

    assert len(hints.queues) == 1


def test_a_worker_says_what_it_has_and_whether_it_is_warm(bench: Any, runner: Runner) -> None:
    runner.beat()

    with bench.database.read() as session:
        (told,) = workers.listing(session)
    assert told.name == "this-worker"
    assert told.devices == {"gpus": [], "cpu_slots": 1, "gpus_free": 0, "cpu_free": 1, "ready": True}


def test_a_runner_that_stops_claims_nothing(bench: Any, runner: Runner) -> None:
    job = bench.submit()
    runner.stop.set()
    runner.work()

    assert bench.job(job).state == "queued"


def test_no_more_jobs_run_than_there_are_slots(bench: Any, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        bench.submit()
    at_once, running, done = [], set(), threading.Semaphore(0)

    def pretend(self: Any) -> None:
        running.add(self)
        at_once.append(len(running))
        time.sleep(0.02)
        running.discard(self)
        done.release()

    monkeypatch.setattr("worker.runner.Supervisor.run", pretend)
    runner.settings = runner.settings.model_copy(update={"lease_seconds": 60})
    others = [threading.Thread(target=runner.work) for _ in range(3)]
    for thread in others:
        runner.work_aside()
        thread.start()
    assert all(done.acquire(timeout=30) for _ in range(3))
    for thread in others:
        thread.join()

    assert at_once == [1, 1, 1]
    with bench.database.read() as session:
        assert jobs.counts(session)["default"] == {"running": 3}


def test_a_chore_that_fails_does_not_stop_the_others(bench: Any, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    reaped = threading.Event()

    def fail(*_: object) -> None:
        raise OSError("the database is away")

    monkeypatch.setattr(runner, "beat", fail)
    monkeypatch.setattr(Reaper, "reap", lambda _: reaped.set())
    reaper = Reaper(runner, Hints(runner.settings.broker), leave=lambda: None)
    reaper.start()

    assert reaped.wait(30)
    runner.close()
    reaper.join(30)


def test_a_database_that_is_away_is_told_of_once_and_when_it_is_back(
    bench: Any, runner: Runner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beats: list[int] = []
    back = threading.Event()

    def beat() -> bool:
        beats.append(1)
        if len(beats) <= 3:
            raise OperationalError("SELECT", {}, ConnectionError("connection refused\nIs the server running?"))
        back.set()
        return False

    bench.replace(poll_seconds=0.01)
    runner.settings = bench.settings
    monkeypatch.setattr(runner, "beat", beat)
    reaper = Reaper(runner, Hints(runner.settings.broker), leave=lambda: None)
    with caplog.at_level("INFO", "worker.reaper"):
        reaper.start()
        assert back.wait(30)
        runner.stop.set()
        reaper.join(30)

    assert [record.getMessage() for record in caplog.records] == [
        "the database does not answer; a chore is tried again each 0.01 s: connection refused",
        "the database answers again",
    ]


def test_a_worker_that_is_drained_finishes_its_jobs_takes_no_other_and_then_leaves(bench: Any, runner: Runner) -> None:
    bench.submit()
    left: list[str] = []
    reaper = Reaper(runner, Hints(runner.settings.broker), leave=lambda: left.append("now"))
    reaper._beat()
    claim, slot = runner.devices.take(runner._claim)
    with bench.database.write() as session:
        workers.drain(session, "this-worker")
    reaper._beat()
    assert left == []
    bench.submit()
    with bench.database.write() as session:
        leases.finish(session, claim.lease, "succeeded")
    runner.devices.give(slot)
    runner.work()
    reaper._beat()

    assert left == ["now"]
    with bench.database.read() as session:
        assert jobs.counts(session) == {"default": {"queued": 1}}


def test_a_checkpoint_goes_once_the_last_job_that_was_pinned_to_it_has_ended(bench: Any, runner: Runner, tmp_path: Path) -> None:
    source = bench.submit()
    bench.run("trainers:save")
    others = [pinned_to(bench, source, step) for step in (60, 20)]
    reaper = Reaper(runner, Hints(runner.settings.broker), leave=lambda: None)
    loose = tmp_path / "jobs" / str(source) / "1" / "30"  # as a pin that held it longer than its job ran left it
    loose.mkdir()
    reaper.let_go()
    assert loose.exists()
    with bench.database.write() as session:
        commands.cancel(session, others[0], "test")
    reaper.let_go()

    folders = sorted(path.name for path in (tmp_path / "jobs" / str(source) / "1").iterdir())
    assert folders == ["20", "60"]
    with bench.database.read() as session:
        assert pins.over(session) == []
        assert pins.steps(session, source) == [20]


def test_what_a_deleted_job_leaves_goes_and_what_was_kept_for_it_alone(bench: Any, runner: Runner, tmp_path: Path) -> None:
    source = bench.submit()
    bench.run("trainers:save")
    other = pinned_to(bench, source, 60)
    loose = tmp_path / "jobs" / str(source) / "1" / "30"  # as that job has kept it
    left = tmp_path / "jobs" / str(other) / "1" / "10"
    for folder in loose, left:
        folder.mkdir(parents=True)
    with bench.database.write() as session:
        commands.cancel(session, other, "test")
    with bench.database.write() as session:
        deletion.delete(session, other)
    reaper = Reaper(runner, Hints(runner.settings.broker), leave=lambda: None)
    reaper.let_go()

    assert not loose.exists()
    assert not (tmp_path / "jobs" / str(other)).exists()
    assert (tmp_path / "jobs" / str(source) / "1" / "60").exists()
    with bench.database.read() as session:
        assert deletion.leftovers(session) == []


def pinned_to(bench: Any, job: int, step: int) -> int:
    with bench.database.write() as session:
        return int(jobs.create(session, spec=bench.make_spec(), plan={}, pinned=Pin(job, step))[0].id)


def test_a_heartbeat_and_a_claim_never_wait_for_each_other(bench: Any, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    describe, asked = runner.devices.describe, threading.Event()

    def tell() -> dict[str, object]:
        asked.set()
        return describe()

    monkeypatch.setattr(runner.devices, "describe", tell)
    beating = threading.Thread(target=runner.beat)

    def claim(_: Any) -> None:
        beating.start()
        assert asked.wait(30)
        with bench.database.write() as session:  # as a claim does, while the heartbeat asks what is free
            leases.reap(session)

    assert runner.devices.take(claim) is None
    beating.join(30)
    assert not beating.is_alive()
