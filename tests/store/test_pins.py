"""Pins: a checkpoint that a job begins with is kept until that job has ended."""

from __future__ import annotations

import threading

import pytest

from store import commands, events, jobs, leases, pins
from store.errors import PinLost
from store.pins import Pin


@pytest.fixture
def source(database, running, checkpoint):
    """A job that keeps its last checkpoint and its best one, of steps 10 and 20."""
    write(database, running, checkpoint(10, top1=0.5), checkpoint(20, top1=0.9))
    return running


def write(database, lease, *new):
    with database.write() as session:
        events.append(session, lease, new)


def kept(database, lease):
    with database.read() as session:
        return [item["step"] for item in events.checkpoints(session, lease.job_id)]


def begin(database, make_spec, pin):
    with database.write() as session:
        return jobs.create(session, spec=make_spec(), plan={}, pinned=pin)[0].id


def test_a_checkpoint_that_a_waiting_job_is_pinned_to_is_kept(database, source, checkpoint, make_spec):
    assert kept(database, source) == [20]
    other = begin(database, make_spec, Pin(source.job_id, 20))
    write(database, source, checkpoint(30, top1=0.95))
    assert kept(database, source) == [20, 30]
    with database.write() as session:
        commands.cancel(session, other, "test")
    assert kept(database, source) == [30]


def test_a_checkpoint_that_went_while_a_job_was_planned_is_not_pinned(database, source, checkpoint, make_spec):
    write(database, source, checkpoint(30, top1=0.95))
    with pytest.raises(PinLost, match=f"job {source.job_id} no longer keeps its checkpoint of step 20"):
        begin(database, make_spec, Pin(source.job_id, 20))


def test_a_fork_at_the_very_moment_of_pruning_is_in_time_or_refused(database, source, checkpoint, make_spec):
    """The supervisor's commit and the new job's: whichever comes second sees the first."""
    for number in range(8):
        step = 30 + 10 * number
        (newest,) = kept(database, source)
        start = threading.Barrier(2)
        pinned, seen = [], []

        def fork(start=start, newest=newest, pinned=pinned):
            start.wait()
            try:
                pinned.append(begin(database, make_spec, Pin(source.job_id, newest)))
            except PinLost:
                pinned.append(None)

        def commit(start=start, step=step, seen=seen):
            start.wait()
            with database.write() as session:
                events.append(session, source, [checkpoint(step, top1=step / 1000 + 0.9)])
                seen.append([item["step"] for item in events.checkpoints(session, source.job_id)])

        threads = [threading.Thread(target=fork), threading.Thread(target=commit)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert seen == [[step] if pinned == [None] else [newest, step]]
        if pinned != [None]:
            with database.write() as session:
                commands.cancel(session, pinned[0], "test")


def test_pins_of_ended_jobs_are_found_once_their_source_has_ended_and_forgotten(database, source, make_spec):
    first, second = (begin(database, make_spec, Pin(source.job_id, 20)) for _ in range(2))
    with database.write() as session:
        commands.cancel(session, first, "test")
    with database.read() as session:
        assert pins.over(session) == []
    with database.write() as session:
        leases.finish(session, source, "succeeded")
        assert pins.over(session) == [source.job_id]
        assert pins.ended(session, source.job_id) == [first]
        pins.let_go(session, [first])
        assert pins.over(session) == []
        assert pins.steps(session, source.job_id) == [20]
        commands.cancel(session, second, "test")
        assert pins.steps(session, source.job_id) == []
