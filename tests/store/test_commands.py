from __future__ import annotations

import orjson
import pytest

from store import commands, events, jobs, leases
from store.errors import Conflict, NotFound


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
        assert (command.kind, command.by) == ("cancel", "api")
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


def test_a_command_is_done_with_the_end_that_obeys_it_and_not_before_that_commits(database, running):
    with database.write() as session:
        commands.cancel(session, running.job_id, "api")

    def obey(session):
        leases.finish(session, running, "cancelled")
        assert commands.pending(session, running) == []

    def obey_and_die():
        with database.write() as session:
            obey(session)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        obey_and_die()
    with database.read() as session:
        assert len(commands.pending(session, running)) == 1
    with database.write() as session:
        obey(session)
    with database.read() as session:
        assert commands.pending(session, running) == []
        assert jobs.get(session, running.job_id).requested is None


def test_a_job_that_ends_by_itself_leaves_no_command_open(database, running):
    with database.write() as session:
        commands.cancel(session, running.job_id, "api")
        leases.finish(session, running, "succeeded")
    with database.read() as session:
        assert commands.pending(session, running) == []
        job = jobs.get(session, running.job_id)
    assert (job.state, job.requested) == ("succeeded", None)


def act(database, what, job_id):
    with database.write() as session:
        return what(session, job_id, "api")


def test_a_waiting_job_is_paused_at_once_and_no_worker_takes_it(database, submit, take):
    job = act(database, commands.pause, submit().id)
    assert (job.state, job.requested, job.ended_at) == ("paused", None, None)
    assert take() is None
    assert act(database, commands.pause, job.id).state == "paused"
    with database.read() as session:
        log = [orjson.loads(event.data) for event in events.read(session, job.id, after=1, limit=10)]
    assert log == [{"state": "paused", "reason": "paused on request", "by": "api"}]


def test_a_resumed_job_has_its_old_place_in_the_queue(database, clock, submit, take):
    first = submit()
    clock.forward(1)
    submit()
    act(database, commands.pause, first.id)
    clock.forward(1)
    assert act(database, commands.resume, first.id).state == "queued"
    assert take().lease.job_id == first.id


def test_a_running_job_is_paused_by_its_worker_and_that_is_no_failure(database, running, take):
    for _ in range(2):
        assert act(database, commands.pause, running.job_id).requested == "pause"
    with database.write() as session:
        (command,) = commands.pending(session, running)
        assert command.kind == "pause"
        assert leases.give_back(session, running, reason="…") == "paused"
    with database.read() as session:
        job = jobs.get(session, running.job_id)
        assert commands.pending(session, running) == []
    assert (job.state, job.requested, job.failures, job.lease_owner) == ("paused", None, 0, None)
    act(database, commands.resume, job.id)
    assert take().lease.attempt == 2


def test_a_pause_that_was_not_yet_obeyed_is_withdrawn_by_a_resume(database, running):
    act(database, commands.pause, running.job_id)
    job = act(database, commands.resume, running.job_id)
    assert (job.state, job.requested) == ("running", None)
    with database.write() as session:
        assert commands.pending(session, running) == []
        assert leases.give_back(session, running, reason="it was told already") == "queued"


def test_a_cancel_overrides_a_pause_and_not_the_other_way_round(database, running):
    act(database, commands.pause, running.job_id)
    assert act(database, commands.cancel, running.job_id).requested == "cancel"
    for refused in (commands.pause, commands.resume):
        with pytest.raises(Conflict, match="is being cancelled"):
            act(database, refused, running.job_id)
    with database.write() as session:
        assert leases.give_back(session, running, reason="…") == "cancelled"


def test_a_pause_that_its_worker_did_not_live_to_obey_is_obeyed_by_the_reaper(database, clock, running):
    act(database, commands.pause, running.job_id)
    clock.forward(61)
    with database.write() as session:
        assert leases.reap(session) == [running.job_id]
        assert jobs.get(session, running.job_id).state == "paused"


def test_a_paused_job_can_be_cancelled(database, submit):
    job = submit()
    act(database, commands.pause, job.id)
    assert act(database, commands.cancel, job.id).state == "cancelled"


@pytest.mark.parametrize("what", [commands.pause, commands.resume])
def test_a_job_that_has_ended_is_neither_paused_nor_resumed(database, running, what):
    with database.write() as session:
        leases.finish(session, running, "succeeded")
    with pytest.raises(Conflict, match="it is succeeded"):
        act(database, what, running.job_id)
    with pytest.raises(NotFound):
        act(database, what, 404)
