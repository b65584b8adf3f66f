from __future__ import annotations

import orjson
import pytest

from store import commands, events, jobs, leases
from store.errors import Conflict, LeaseLost, NotFound


def test_a_waiting_job_is_cancelled_at_once(database, clock, submit, take):
    job = submit()
    with database.write() as session:
        cancelled = commands.cancel(session, job.id, "api")
    assert (cancelled.state, cancelled.ended_at, cancelled.requested) == ("cancelled", clock.time, None)
    assert take() is None
    with database.read() as session:
        log = [(event.kind, orjson.loads(event.data)) for event in events.read(session, job.id, after=1, limit=10)]
    assert log == [
        ("state", {"state": "cancelled", "reason": "cancelled on request", "by": "api"}),
        ("end", {"state": "cancelled", "failure": None, "last_seq": 3}),
    ]


def test_a_running_job_is_asked_to_cancel(database, running):
    with database.write() as session:
        job = commands.cancel(session, running.job_id, "api")
    assert (job.state, job.requested) == ("running", "cancel")
    with database.read() as session:
        (command,) = commands.pending(session, running)
        assert (command.kind, command.by, command.lease) == ("cancel", "api", running)
        assert jobs.get(session, running.job_id).requested == "cancel"


def test_asking_twice_is_asking_once(database, running):
    for _ in range(2):
        with database.write() as session:
            commands.cancel(session, running.job_id, "api")
    with database.read() as session:
        assert len(commands.pending(session, running)) == 1


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_a_job_that_has_ended_cannot_be_cancelled_and_the_answer_says_how_it_ended(database, running, state):
    with database.write() as session:
        leases.finish(session, running, state)
    with pytest.raises(Conflict, match=f"job {running.job_id} has ended already: it is {state}"), database.write() as session:
        commands.cancel(session, running.job_id, "api")


def test_a_job_that_is_not_there_cannot_be_cancelled(database):
    with pytest.raises(NotFound), database.write() as session:
        commands.cancel(session, 404, "api")


@pytest.mark.parametrize("order", ["done first", "end first"])
def test_a_command_is_done_with_the_end_that_obeys_it(database, running, order):
    with database.write() as session:
        commands.cancel(session, running.job_id, "api")
    with database.write() as session:
        (command,) = commands.pending(session, running)
        acts = [lambda: commands.done(session, command), lambda: leases.finish(session, running, "cancelled")]
        for act in acts if order == "done first" else acts[::-1]:
            act()
    with database.read() as session:
        assert commands.pending(session, running) == []
        assert jobs.get(session, running.job_id).requested is None


def test_a_command_whose_event_did_not_commit_is_not_done(database, running):
    with database.write() as session:
        commands.cancel(session, running.job_id, "api")

    def obey_and_die():
        with database.write() as session:
            commands.done(session, commands.pending(session, running)[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        obey_and_die()
    with database.read() as session:
        assert len(commands.pending(session, running)) == 1


def test_who_lost_the_lease_marks_no_command(database, clock, running, take):
    clock.forward(61)
    with database.write() as session:
        leases.reap(session)
    lease = take("two").lease
    with database.write() as session:
        commands.cancel(session, lease.job_id, "api")
        stale = commands.pending(session, running)
    with pytest.raises(LeaseLost), database.write() as session:
        commands.done(session, stale[0])
    with database.read() as session:
        assert len(commands.pending(session, lease)) == 1


def test_a_job_that_ends_by_itself_leaves_no_command_open(database, running):
    with database.write() as session:
        commands.cancel(session, running.job_id, "api")
        leases.finish(session, running, "succeeded")
    with database.read() as session:
        assert commands.pending(session, running) == []
        job = jobs.get(session, running.job_id)
    assert (job.state, job.requested) == ("succeeded", None)
