from __future__ import annotations

import orjson
import pytest

from core.events import Failure
from store import commands, events, jobs, leases, workers
from store.errors import LeaseLost
from store.leases import Lease

CRASH = Failure(type="crashed", message="the trainer died", hint="Read the log.")


def log(database, job_id):
    """The log's states and end, as (kind, state, by)."""
    with database.read() as session:
        rows = events.read(session, job_id, limit=100, kinds={"state", "end"})
    return [(row.kind, (data := orjson.loads(row.data))["state"], data.get("by")) for row in rows]


def test_a_claim_gives_the_spec_and_a_lease(database, clock, submit, take):
    job = submit()
    clock.forward(5)
    claim = take(owner="one")
    assert claim.lease == Lease(job.id, 1, "one", 60)
    assert (claim.spec, claim.plan, claim.gpus) == (job.spec, job.plan, 0)
    with database.read() as session:
        now = jobs.get(session, job.id)
    assert (now.state, now.attempt, now.lease_owner, now.lease_until) == ("running", 1, "one", clock.time + 60)
    assert now.started_at == clock.time
    assert log(database, job.id) == [("state", "queued", "api"), ("state", "running", "one")]


def test_the_highest_priority_goes_first_then_the_longest_waiting(clock, submit, take):
    old = submit()
    clock.forward(1)
    young, urgent, idle = submit(), submit(priority=5), submit(priority=-1)
    assert [take().lease.job_id for _ in range(4)] == [urgent.id, old.id, young.id, idle.id]
    assert take() is None


def test_a_worker_claims_from_its_own_queues_only(submit, take):
    other, second = submit(queue="other"), submit(queue="second")
    assert take(queues=("default",)) is None
    assert take(queues=("default", "second")).lease.job_id == second.id
    assert take(queues=("other",)).lease.job_id == other.id


@pytest.mark.parametrize(
    ("wanted", "gpus", "free", "cpu", "given"),
    [
        (None, 0, 0, 1, 0),  # no GPU in the host: the CPU
        (None, 0, 0, 0, None),
        (None, 2, 1, 0, 1),  # one where the host has any
        (None, 2, 0, 1, None),  # and none else: it waits for the GPU
        (0, 2, 2, 1, 0),
        (0, 2, 2, 0, None),
        (1, 2, 1, 0, 1),
        (1, 2, 0, 1, None),
        (1, 0, 0, 1, None),
    ],
)
def test_a_job_is_claimed_where_what_it_needs_is_free(submit, take, wanted, gpus, free, cpu, given):
    submit(gpus=wanted)
    claim = take(gpus=gpus, free=free, cpu=cpu)
    assert (claim and claim.gpus) == given


def test_a_job_that_does_not_fit_keeps_no_other_waiting(submit, take):
    submit(gpus=1, priority=9)
    small = submit(gpus=0)
    assert take(gpus=1, free=0, cpu=1).lease.job_id == small.id


def test_a_renewal_holds_the_job_from_now_on(database, clock, running):
    clock.forward(40)
    with database.write() as session:
        assert leases.renew(session, running)
    clock.forward(40)
    with database.write() as session:
        assert leases.reap(session) == []


def test_a_late_renewal_counts_if_nobody_took_the_job(database, clock, running):
    clock.forward(1000)
    with database.write() as session:
        assert leases.renew(session, running)
        assert leases.reap(session) == []


@pytest.mark.parametrize("state", ["succeeded", "cancelled"])
def test_a_job_ends_with_its_state_and_then_end(database, clock, running, state):
    clock.forward(5)
    with database.write() as session:
        leases.finish(session, running, state)
    with database.read() as session:
        job = jobs.get(session, running.job_id)
        last = events.read(session, job.id, limit=100)[-1]
        assert events.last_seq(session, job.id) == (4, True)
    assert (job.state, job.ended_at, job.lease_owner, job.lease_until, job.failure) == (state, clock.time, None, None, None)
    assert log(database, job.id)[-2:] == [("state", state, "one"), ("end", state, None)]
    assert (last.seq, orjson.loads(last.data)) == (4, {"state": state, "failure": None, "last_seq": 4})


def test_a_failure_is_typed_and_says_what_to_try(database, running):
    with database.write() as session:
        leases.finish(session, running, "failed", CRASH)
    with database.read() as session:
        assert jobs.get(session, running.job_id).failure == CRASH.model_dump()
        assert events.latest(session, running.job_id, "end")["failure"] == CRASH.model_dump()


def test_a_job_given_back_keeps_its_place_and_its_failures(database, clock, submit, take):
    first = submit()
    clock.forward(1)
    submit()
    lease = take().lease
    with database.write() as session:
        assert leases.give_back(session, lease, reason="the worker is being stopped") == "queued"
    claim = take()
    assert (claim.lease.job_id, claim.lease.attempt) == (first.id, 2)
    with database.read() as session:
        assert jobs.get(session, first.id).failures == 0


def test_a_job_may_pause_itself_and_says_why(database, running, take):
    with database.write() as session:
        commands.pause(session, running.job_id, "api")
        assert leases.pause(session, running, reason="the loss became nan") == "paused"
    with database.read() as session:
        job = jobs.get(session, running.job_id)
        assert (job.state, job.requested, job.failures, job.lease_owner) == ("paused", None, 0, None)
        assert events.latest(session, running.job_id, "state") == {
            "state": "paused", "reason": "the loss became nan", "by": "one"
        }  # fmt: skip
    with pytest.raises(LeaseLost), database.write() as session:
        leases.pause(session, running, reason="too late")


def test_a_cancel_goes_before_a_job_that_pauses_itself(database, running):
    with database.write() as session:
        commands.cancel(session, running.job_id, "api")
        assert leases.pause(session, running, reason="the loss became nan") == "cancelled"


def test_failed_tries_in_a_row_end_the_job(database, submit, take):
    job = submit(max_attempts=2)
    states = []
    for _ in range(2):
        lease = take().lease
        with database.write() as session:
            states.append(leases.give_back(session, lease, reason="it died", failure=CRASH, counted=True))
    assert states == ["queued", "failed"]
    with database.read() as session:
        ended = jobs.get(session, job.id)
    assert (ended.state, ended.failures, ended.attempt, ended.failure["type"]) == ("failed", 2, 2, "crashed")
    assert log(database, job.id)[-1] == ("end", "failed", None)
    assert take() is None


def test_a_checkpoint_starts_the_count_of_failures_anew(database, submit, take, checkpoint):
    job = submit(max_attempts=2)
    for step in (1, 2, 3):
        lease = take().lease
        with database.write() as session:
            events.append(session, lease, [checkpoint(step)])
        with database.write() as session:
            assert leases.give_back(session, lease, reason="it died", failure=CRASH, counted=True) == "queued"
    with database.read() as session:
        assert jobs.get(session, job.id).failures == 1


def test_only_what_ran_out_is_reaped(database, clock, submit, take):
    submit(), submit()
    old = take().lease
    clock.forward(30)
    young = take(owner="two").lease
    clock.forward(31)
    with database.write() as session:
        assert leases.reap(session) == [old.job_id]
        assert leases.reap(session) == []
        assert leases.renew(session, young)
    assert log(database, old.job_id)[-1] == ("state", "queued", "reaper")


def test_a_worker_lost_again_and_again_fails_the_job(database, clock, submit, take):
    job = submit(max_attempts=2)
    for _ in range(2):
        take(owner="frail")
        clock.forward(61)
        with database.write() as session:
            assert leases.reap(session) == [job.id]
    with database.read() as session:
        failure = jobs.get(session, job.id).failure
    assert failure["type"] == "worker_lost"
    assert "frail" in failure["message"]
    assert failure["hint"]


def test_a_cancel_that_its_worker_did_not_live_to_obey_is_obeyed_by_the_reaper(database, clock, running):
    with database.write() as session:
        commands.cancel(session, running.job_id, "api")
    clock.forward(61)
    with database.write() as session:
        leases.reap(session)
    with database.read() as session:
        job = jobs.get(session, running.job_id)
        assert commands.pending(session, running) == []
    assert (job.state, job.requested, job.failure) == ("cancelled", None, None)


def test_a_job_given_back_while_a_cancel_waits_is_cancelled(database, running):
    with database.write() as session:
        commands.cancel(session, running.job_id, "api")
        assert leases.give_back(session, running, reason="the worker is being stopped") == "cancelled"


def test_all_of_a_dead_workers_jobs_are_released_at_once(database, submit, take):
    for _ in range(3):
        submit()
    first, second, other = take("dead"), take("dead"), take("alive")
    with database.write() as session:
        assert leases.release(session, "dead") == [first.lease.job_id, second.lease.job_id]
        assert leases.renew(session, other.lease)
    with database.read() as session:
        assert jobs.get(session, first.lease.job_id).failures == 1


@pytest.mark.parametrize("retaken", [True, False], ids=["taken by another", "not yet taken"])
def test_a_worker_that_lost_its_lease_writes_nothing(database, clock, running, take, iterations, retaken):
    clock.forward(61)
    with database.write() as session:
        leases.reap(session)
    if retaken:
        assert take("two").lease.job_id == running.job_id
    with database.write() as session:
        if retaken:
            commands.cancel(session, running.job_id, "api")
    before = _everything(database, running.job_id)

    def finishes(session):
        leases.finish(session, running, "succeeded")

    def gives_back(session):
        leases.give_back(session, running, reason="late", failure=CRASH, counted=True)

    def appends(session):
        events.append(session, running, [iterations(0, [1.0])])

    def appends_a_rewind(session):
        events.append(session, running, [events.NewEvent(0, "rewound", {"to_step": 0})])

    for act in (finishes, gives_back, appends, appends_a_rewind):
        with pytest.raises(LeaseLost), database.write() as session:
            act(session)
        assert _everything(database, running.job_id) == before, act.__name__
    with database.write() as session:
        assert not leases.renew(session, running)
    assert _everything(database, running.job_id) == before


def _everything(database, job_id):
    with database.read() as session:
        job = jobs.get(session, job_id)
        columns = {column.key: getattr(job, column.key) for column in job.__table__.columns}
        return columns, events.read(session, job_id, limit=1000), commands.pending(session, Lease(job_id, 0, "", 0))


def test_an_attempt_never_returns(database, clock, submit, take):
    submit(max_attempts=100)
    attempts = []
    for _ in range(4):
        attempts.append(take().lease.attempt)
        clock.forward(61)
        with database.write() as session:
            leases.reap(session)
    assert attempts == [1, 2, 3, 4]


def test_the_running_time_is_that_of_all_attempts_without_waiting_and_pauses(database, clock, submit, take):
    submit(max_hours=0.5)
    assert take().seconds_left == 1800
    clock.forward(50)
    with database.write() as session:
        leases.release(session, "one")
    clock.forward(1000)  # in the queue
    lease = take().lease
    clock.forward(40)
    with database.write() as session:
        commands.pause(session, lease.job_id, "api")
        leases.give_back(session, lease, reason="…")
    clock.forward(1000)  # paused
    with database.write() as session:
        commands.resume(session, lease.job_id, "api")
    again = take()
    assert again.seconds_left == 1800 - 90
    clock.forward(10)
    assert shown(database, lease.job_id) == 90 + 10
    with database.write() as session:
        leases.finish(session, again.lease, "succeeded")
    clock.forward(1000)  # over
    assert shown(database, lease.job_id) == 90 + 10


def shown(database, job_id):
    with database.read() as session:
        return jobs.ran_seconds(session, jobs.get(session, job_id))


def test_a_worker_that_died_is_counted_as_running_until_its_lease_ran_out(database, clock, submit, take):
    job = submit(max_hours=1)
    take()
    clock.forward(5000)
    assert shown(database, job.id) == 60
    with database.write() as session:
        leases.reap(session)
    assert take().seconds_left == 3600 - 60


def test_a_job_without_a_limit_may_run_for_ever(submit, take):
    submit()
    assert take().seconds_left is None


def test_a_worker_that_drains_gets_no_job_and_the_others_do(database, submit, take):
    job = submit()
    with database.write() as session:
        told = {"host": "h", "queues": ["default"], "devices": {}, "running": []}
        assert workers.heartbeat(session, name="one", **told) is False
        workers.drain(session, "one")
        assert workers.heartbeat(session, name="one", **told) is True
    assert take("one") is None
    assert take("two").lease.job_id == job.id
