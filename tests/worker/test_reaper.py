"""What a worker does beside its jobs."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from store import jobs, leases, workers
from worker.devices import Devices
from worker.reaper import Reaper
from worker.runner import Runner


class Told:
    """Hints that are only written down."""

    def __init__(self) -> None:
        self.queues: list[str] = []

    def send(self, queue: str) -> bool:
        self.queues.append(queue)
        return True


@pytest.fixture
def runner(bench: Any) -> Runner:
    bench.replace(worker_name="this-worker", lease_seconds=0.05)
    return Runner(bench.settings, bench.database, bench.sandbox, Devices([], cpu_slots=1))


def test_a_job_whose_worker_was_not_heard_of_is_taken_back_and_hinted_at_again(bench: Any, runner: Runner) -> None:
    job = bench.submit(resources={"queue": "default", "max_attempts": 3})
    bench.claim("a-dead-worker")
    time.sleep(0.1)
    hints = Told()
    Reaper(runner, hints, leave=lambda: None).reap()

    assert (bench.job(job).state, bench.job(job).failures) == ("queued", 1)
    assert hints.queues == ["default"]


def test_each_queue_with_waiting_jobs_is_hinted_at_once(bench: Any, runner: Runner) -> None:
    for queue in "a", "b", "b":
        bench.submit(resources={"queue": queue})
    hints = Told()
    Reaper(runner, hints, leave=lambda: None).reap()

    assert sorted(hints.queues) == ["a", "b"]


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
    for _ in range(3):
        runner.work_aside()
        threading.Thread(target=runner.work).start()
    assert all(done.acquire(timeout=5) for _ in range(3))

    assert at_once == [1, 1, 1]
    with bench.database.read() as session:
        assert jobs.counts(session)["default"] == {"running": 3}


def test_a_chore_that_fails_does_not_stop_the_others(bench: Any, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    reaped = threading.Event()

    def fail(*_: object) -> None:
        raise OSError("the database is away")

    monkeypatch.setattr(runner, "beat", fail)
    monkeypatch.setattr(Reaper, "reap", lambda _: reaped.set())
    reaper = Reaper(runner, Told(), leave=lambda: None)
    reaper.start()

    assert reaped.wait(2)
    runner.stop.set()
    reaper.join(2)


def test_a_worker_that_is_drained_finishes_its_jobs_takes_no_other_and_then_leaves(bench: Any, runner: Runner) -> None:
    bench.submit()
    left: list[str] = []
    reaper = Reaper(runner, Told(), leave=lambda: left.append("now"))
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
