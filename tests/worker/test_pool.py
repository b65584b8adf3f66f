"""The pool of a host with the queue of the database: who gets a device next, on both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from store import commands, jobs, leases
from store.database import Database
from store.leases import Capacity, Claim
from store.tables import Job
from worker.devices import Devices, Slot


@dataclass
class Host:
    """A worker of so many devices, and what runs on it."""

    database: Database
    make_spec: Callable[..., dict[str, Any]]
    devices: Devices
    running: dict[int, tuple[Claim, Slot]] = field(default_factory=dict)

    def submit(self, gpus: int | None, priority: int = 0) -> int:
        with self.database.write() as session:
            spec = self.make_spec(resources={"gpus": gpus, "priority": priority})
            return jobs.create(session, spec=spec, plan={})[0].id

    def take(self) -> int | None:
        """The job that is started, if any."""
        taken = self.devices.take(self._claim)
        if taken is None:
            return None
        job = taken[0].lease.job_id
        self.running[job] = taken
        return job

    def take_all(self) -> list[int]:
        return list(iter(self.take, None))

    def finish(self, job: int) -> None:
        claim, slot = self.running.pop(job)
        with self.database.write() as session:
            leases.finish(session, claim.lease, "succeeded")
        self.devices.give(slot)

    def _claim(self, capacity: Capacity) -> Claim | None:
        with self.database.write() as session:
            return leases.claim(session, owner="host", queues=["default"], capacity=capacity, seconds=60)


@pytest.fixture
def database(stack: Any) -> Iterator[Database]:
    """That of each stack."""
    made = Database(stack.database_url)
    yield made
    made.dispose()


@pytest.fixture
def host(database: Database, make_spec: Callable[..., dict[str, Any]]) -> Callable[..., Host]:
    return lambda gpus, cpu=1: Host(database, make_spec, Devices([str(index) for index in range(gpus)], cpu))


def test_a_large_job_reserves_what_becomes_free_and_small_ones_behind_it_wait(host: Callable[..., Host]) -> None:
    four = host(4)
    small = [four.submit(1) for _ in range(3)]
    assert four.take_all() == small
    large, late, cpu = four.submit(4), four.submit(1), four.submit(0)
    assert four.take_all() == [cpu], "a job of the CPU is in nobody's way"
    for job in small[:-1]:
        four.finish(job)
        assert four.take_all() == []
    four.finish(small[-1])
    assert four.take_all() == [large]
    assert four.running[large][1] == Slot(("0", "1", "2", "3"))
    four.finish(large)
    assert four.take_all() == [late]


def test_what_is_before_the_large_job_goes_before_it(host: Callable[..., Host]) -> None:
    two = host(2)
    first = two.submit(1)
    assert two.take_all() == [first]
    two.submit(2)
    urgent = two.submit(1, priority=5)
    assert two.take_all() == [urgent]


def test_a_job_that_needs_more_than_the_host_has_blocks_nobody(host: Callable[..., Host]) -> None:
    two = host(2)
    two.submit(8, priority=9)
    first, second, third = two.submit(1), two.submit(1), two.submit(1)
    assert two.take_all() == [first, second]
    two.finish(first)
    assert two.take_all() == [third]


@pytest.mark.parametrize("how", ["cancel", "pause", "priority"])
def test_the_reservation_ends_with_its_cause(host: Callable[..., Host], how: str) -> None:
    two = host(2)
    first = two.submit(1)
    assert two.take_all() == [first]
    large, small = two.submit(2), two.submit(1)
    assert two.take_all() == []
    with two.database.write() as session:
        if how == "priority":
            job = jobs.locked(session, large)
            jobs.edit(session, job, name=None, labels={}, priority=-1)
        else:
            getattr(commands, how)(session, large, by="api")
    assert two.take_all() == [small]


JOBS = st.tuples(st.just("submit"), st.sampled_from([None, 0, 1, 1, 2, 3, 4, 5]), st.integers(-1, 1))
ENDS = st.tuples(st.just("finish"), st.integers(0, 20), st.just(0))


@pytest.mark.slow  # each example is a queue of up to sixteen jobs
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(moves=st.lists(JOBS | ENDS, max_size=16))
def test_no_device_is_given_twice_none_idles_without_reason_and_every_job_that_fits_has_its_turn(
    host: Callable[..., Host], moves: list[tuple[str, Any, int]]
) -> None:
    four = host(4)
    with four.database.write() as session:
        session.execute(delete(Job))
    waiting: dict[int, tuple[int, int]] = {}  # by id, which is the order of their coming: what each needs, and its priority

    def settle() -> None:
        while (job := four.take()) is not None:
            gpus, priority = waiting.pop(job)
            assert len(four.running[job][1].gpus) == gpus
            free = len(four.devices.gpus) - sum(len(slot.gpus) for _, slot in four.running.values()) + gpus
            ahead = [other for other, (_, its) in waiting.items() if (-its, other) < (-priority, job)]
            if gpus:
                assert not [other for other in ahead if free < waiting[other][0] <= 4], "it took what was reserved"
            assert not [other for other in ahead if bool(waiting[other][0]) == bool(gpus) and waiting[other][0] <= free]
        used = [gpu for _, slot in four.running.values() for gpu in slot.gpus]
        assert len(used) == len(set(used))
        fitting = sorted((-priority, job, gpus) for job, (gpus, priority) in waiting.items() if 0 < gpus <= 4)
        if fitting:
            assert fitting[0][2] > 4 - len(used), "the head of the queue waits though there is room for it"
        on_cpu = [slot for _, slot in four.running.values() if not slot.gpus]
        assert len(on_cpu) <= 1
        assert on_cpu or not [job for job, (gpus, _) in waiting.items() if gpus == 0]

    for what, number, priority in moves:
        if what == "submit":
            job = four.submit(number, priority)
            waiting[job] = (1 if number is None else number, priority)
        elif four.running:
            four.finish(sorted(four.running)[number % len(four.running)])
        settle()
    while four.running:
        four.finish(min(four.running))
        settle()
    assert all(gpus > 4 for gpus, _ in waiting.values()), "only what never fits is left"
