from __future__ import annotations

import pytest

from store import workers
from store.capacity import Capacity
from store.errors import NotFound


def beat(database, name, **told):
    with database.write() as session:
        workers.heartbeat(
            session, **{"name": name, "host": "h", "queues": ["default"], "devices": {"gpus": []}, "running": [], **told}
        )


def test_a_worker_is_as_its_last_heartbeat_told(database, clock):
    beat(database, "one")
    clock.forward(10)
    beat(database, "one", running=[3, 2], queues=["default", "big"])
    with database.read() as session:
        (worker,) = workers.listing(session)
    assert (worker.name, worker.host, worker.queues, worker.devices, worker.running) == (
        "one",
        "h",
        ["default", "big"],
        {"gpus": []},
        [2, 3],
    )
    assert (worker.started_at, worker.seen_at, worker.alive) == (clock.time - 10, clock.time, True)


def test_those_alive_come_first(database, clock):
    beat(database, "a")
    clock.forward(31)
    beat(database, "c")
    beat(database, "b")
    with database.read() as session:
        assert [(worker.name, worker.alive) for worker in workers.listing(session)] == [("b", True), ("c", True), ("a", False)]


def test_a_worker_that_stopped_is_forgotten(database):
    beat(database, "one")
    with database.write() as session:
        workers.forget(session, "one")
        workers.forget(session, "never seen")
        assert workers.listing(session) == []


def test_a_worker_drains_until_it_starts_anew(database):
    beat(database, "one")
    with database.write() as session:
        workers.drain(session, "one")
    beat(database, "one")
    with database.read() as session:
        assert workers.listing(session)[0].draining
    with database.write() as session:
        workers.forget(session, "one")
    beat(database, "one")
    with database.read() as session:
        assert not workers.listing(session)[0].draining


def test_a_worker_that_nobody_heard_of_cannot_be_drained(database):
    with pytest.raises(NotFound, match="'nobody'"), database.write() as session:
        workers.drain(session, "nobody")


def test_each_queue_has_what_its_living_workers_have_that_take_jobs(database, clock):
    beat(database, "silent", queues=["night"])
    clock.forward(31)
    beat(database, "a", queues=["default", "big"], devices={"gpus": ["0", "1"], "gpus_free": 0, "cpu_slots": 1, "cpu_free": 0})
    beat(database, "b", devices={"gpus": [], "cpu_slots": 2})
    beat(database, "leaves", queues=["big"], devices={"gpus": ["0"] * 8})
    with database.write() as session:
        workers.drain(session, "leaves")
        two, none = Capacity(2, 2, 1), Capacity(0, 0, 2)
        assert workers.capacities(session) == {"default": {two, none}, "big": {two}}
