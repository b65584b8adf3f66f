"""Deleting a job: what goes with it, what forbids it, and what is noted for whoever removes its files."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import func, select

from store import commands, deletion, events, jobs, leases, pins
from store.errors import Conflict, NotFound, PinLost
from store.pins import Pin
from store.tables import Command, EventRecord


@pytest.fixture
def ended(database, running, checkpoint):
    """A job that succeeded, and keeps its checkpoint of step 10."""
    with database.write() as session:
        events.append(session, running, [checkpoint(10, top1=0.5)])
        leases.finish(session, running, "succeeded")
    return running.job_id


def delete(database, job_id):
    with database.write() as session:
        deletion.delete(session, job_id)


def begin(database, make_spec, pin):
    with database.write() as session:
        return jobs.create(session, spec=make_spec(), plan={}, pinned=pin)[0].id


def leftovers(database):
    with database.read() as session:
        return deletion.leftovers(session)


def test_an_ended_job_goes_with_its_log_and_commands_and_its_folder_is_noted(database, submit, ended):
    other = submit().id
    delete(database, ended)
    with database.read() as session:
        with pytest.raises(NotFound):
            jobs.get(session, ended)
        of_job = EventRecord.job_id == ended
        assert session.scalar(select(func.count()).select_from(EventRecord).where(of_job)) == 0
        assert session.scalar(select(func.count()).select_from(Command).where(Command.job_id == ended)) == 0
        assert events.last_seq(session, other) == (1, False), "the other's log stays"
    assert leftovers(database) == [ended]
    with database.write() as session:
        deletion.cleared(session, ended)
    assert leftovers(database) == []
    assert submit().id > other, "no id is used again"
    with pytest.raises(NotFound):
        delete(database, ended)


@pytest.mark.parametrize("state", ["queued", "paused", "running"])
def test_a_job_that_has_not_ended_is_a_conflict_that_names_its_state(database, submit, take, state):
    job_id = submit().id
    if state == "running":
        take()
    if state == "paused":
        with database.write() as session:
            commands.pause(session, job_id, "test")
    with pytest.raises(Conflict, match=f"job {job_id} has not ended: it is {state}"):
        delete(database, job_id)


def test_a_job_whose_checkpoint_another_waits_for_stays_until_that_has_ended(database, ended, make_spec):
    other = begin(database, make_spec, Pin(ended, 10))
    with pytest.raises(Conflict, match=f"begin with checkpoints of job {ended}: {other};"):
        delete(database, ended)
    with database.write() as session:
        commands.cancel(session, other, "test")
    delete(database, ended)
    with database.read() as session:
        assert jobs.get(session, other).pinned_job is None
        assert pins.over(session) == []


def test_what_was_kept_for_a_deleted_job_alone_is_noted_too(database, ended, make_spec):
    for _ in range(2):
        other = begin(database, make_spec, Pin(ended, 10))
        with database.write() as session:
            commands.cancel(session, other, "test")
        delete(database, other)
        assert set(leftovers(database)) >= {ended, other}


def test_a_job_that_would_begin_with_a_deleted_one_is_refused(database, ended, make_spec):
    delete(database, ended)
    with pytest.raises(PinLost, match=f"job {ended} was deleted"):
        begin(database, make_spec, Pin(ended, 10))


def test_of_a_deletion_and_a_fork_at_the_same_moment_one_is_refused(database, ended, make_spec):
    start = threading.Barrier(2)
    refused = []

    def run(action, error):
        start.wait()
        try:
            action()
        except error as refusal:
            refused.append(refusal)

    threads = [
        threading.Thread(target=run, args=(lambda: begin(database, make_spec, Pin(ended, 10)), PinLost)),
        threading.Thread(target=run, args=(lambda: delete(database, ended), Conflict)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(refused) == 1
