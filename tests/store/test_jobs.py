from __future__ import annotations

import threading

import pytest

from store import commands, events, jobs, leases
from store.capacity import Capacity
from store.errors import Conflict, NotFound


def test_a_new_job_waits_and_its_log_says_so(database, clock, submit):
    job = submit(
        spec={"name": "clothes", "labels": {"team": "web"}, "training": {"epochs": 5}}, priority=3, queue="big", max_attempts=2
    )
    assert (job.name, job.labels, job.state, job.queue, job.priority) == ("clothes", {"team": "web"}, "queued", "big", 3)
    assert (job.attempt, job.failures, job.max_attempts, job.steps_total, job.epochs) == (0, 0, 2, 100, 5)
    assert job.created_at == job.queued_at == clock.time
    with database.read() as session:
        (event,) = events.read(session, job.id, limit=10)
    assert event.envelope() == (
        b'{"seq":1,"at":"2027-01-15T08:00:00.000Z","attempt":0,"step":0,"kind":"state",'
        b'"data":{"state":"queued","reason":null,"by":"api"}}'
    )


def test_a_spec_comes_back_as_it_was(database, submit, make_spec):
    optimizer = {"name": "Adam", "lr": 1e-4, "betas": [0.9, 0.999], "groups": [{"params": "fc.*", "lr": 0.1}]}
    job = submit(spec={"optimizer": optimizer, "name": 'é "quoted" 日本 \\u0000'})
    with database.read() as session:
        spec = jobs.get(session, job.id).spec
    assert spec == make_spec(optimizer=optimizer, name='é "quoted" 日本 \\u0000')


def test_the_same_key_and_body_give_the_same_job(database, submit, make_spec):
    first = submit(key="k", body="hash")
    with database.write() as session:
        job, new = jobs.create(session, spec=make_spec(), plan={}, key="k", body_hash="hash")
    assert (job.id, new) == (first.id, False)


def test_the_same_key_with_another_body_is_a_conflict_that_names_the_job(submit):
    first = submit(key="k", body="hash")
    with pytest.raises(Conflict, match=f"made job {first.id} from another body"):
        submit(key="k", body="other")


def test_jobs_without_a_key_are_all_new(submit):
    assert submit().id != submit().id


def test_requests_at_once_with_one_key_make_one_job(database, submit):
    made = []
    start = threading.Barrier(6)

    def send() -> None:
        start.wait()
        made.append(submit(key="k", body="hash").id)

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    assert len(set(made)) == 1
    with database.read() as session:
        assert len(jobs.find(session)[0]) == 1
        assert events.last_seq(session, made[0]) == (1, False)


def test_a_job_that_is_not_there_is_not_found(database):
    with database.read() as session, pytest.raises(NotFound, match="there is no job 404"):
        jobs.get(session, 404)


def test_pages_go_from_new_to_old_and_meet_without_a_gap(database, submit):
    ids = [submit().id for _ in range(7)]
    seen, after = [], None
    with database.read() as session:
        while True:
            page, more = jobs.find(session, limit=3, after=after)
            seen += [job.id for job in page]
            if not more:
                break
            after = page[-1].id
    assert seen == ids[::-1]


def test_a_page_that_ends_with_the_last_job_has_no_more(database, submit):
    submit(), submit()
    with database.read() as session:
        assert jobs.find(session, limit=2)[1] is False
        assert jobs.find(session, limit=1)[1] is True


def test_jobs_are_found_by_state(database, submit, take):
    submit(), submit()
    claimed = take()
    with database.read() as session:
        assert [job.id for job in jobs.find(session, state="running")[0]] == [claimed.lease.job_id]
        assert len(jobs.find(session, state="queued")[0]) == 1
        assert jobs.find(session, state="failed")[0] == []


@pytest.mark.parametrize("name", ["team", 'quo"ted', "a.b", "$", "it's", "\\", "Größe", "a b", ""])
def test_jobs_are_found_by_any_label_that_the_spec_takes(database, submit, name):
    labels = {name or "empty value": "x" if name else ""}
    wanted = submit(spec={"labels": {**labels, "more": "1"}})
    submit(spec={"labels": dict.fromkeys(labels, "other")})
    submit()
    with database.read() as session:
        assert [job.id for job in jobs.find(session, labels=labels)[0]] == [wanted.id]
        assert [job.id for job in jobs.find(session, labels={**labels, "more": "1"})[0]] == [wanted.id]
        assert jobs.find(session, labels={**labels, "more": "2"})[0] == []


def test_the_place_in_the_queue_counts_who_goes_first(database, clock, submit, take):
    first, second = submit(), submit()
    clock.forward(1)
    third, urgent, elsewhere = submit(), submit(priority=1), submit(queue="other")
    with database.read() as session:
        assert [jobs.position(session, job) for job in (urgent, first, second, third, elsewhere)] == [0, 1, 2, 3, 0]
    take()
    with database.read() as session:
        assert jobs.position(session, jobs.get(session, urgent.id)) is None
        assert jobs.position(session, first) == 0


def test_who_can_have_nothing_that_a_job_waits_for_does_not_go_before_it(database, submit):
    """On a worker with two GPUs and a CPU slot."""
    asked = [None, 0, 4, 2, 0, 1, 8]
    made = [submit(gpus=gpus) for gpus in asked]
    submit(queue="other", gpus=1, priority=9)
    with database.read() as session:
        places = [jobs.position(session, job, [Capacity(2, 2, 1)]) for job in made]
        assert places == [0, 0, 2, 1, 1, 2, 6], "those of 4 and 8 GPUs fit nowhere: they wait behind all, and nobody behind them"
        larger = [Capacity(2, 2, 1), Capacity(4, 4, 0)]
        assert [jobs.position(session, job, larger) for job in made] == [0, 0, 1, 2, 1, 3, 6]
        without_gpus = [Capacity(0, 0, 1)]
        assert [jobs.position(session, job, without_gpus) for job in made[:2]] == [0, 1], "both take the CPU there"


def test_the_place_in_the_queue_is_how_many_are_claimed_before(database, submit, take):
    submit(gpus=4, priority=9)
    submit(gpus=0, priority=8)
    made = [submit(gpus=gpus, priority=priority) for gpus, priority in ((1, 1), (2, 2), (None, 3))]
    with database.read() as session:
        told = {jobs.position(session, job, [Capacity(2, 2, 0)]): job.id for job in made}
    claimed = []
    while (claim := take(gpus=2, cpu=0)) is not None:
        claimed.append(claim.lease.job_id)
    assert claimed == [told[0], told[1], told[2]]


def test_those_that_wait_and_run_are_counted_by_queue(database, submit, take):
    submit(), submit(), submit(), submit(queue="other")
    lease = take().lease
    with database.write() as session:
        leases.finish(session, lease, "succeeded")
    take()
    with database.read() as session:
        assert jobs.counts(session) == {"default": {"queued": 1, "running": 1}, "other": {"queued": 1}}


def test_an_edited_job_says_the_same_in_its_spec_and_takes_its_new_place(database, submit, take):
    submit()
    late = submit()
    with database.write() as session:
        jobs.edit(session, jobs.locked(session, late.id), name="urgent", labels={"team": "web"}, priority=9)
    with database.read() as session:
        job = jobs.get(session, late.id)
        assert jobs.position(session, job) == 0
    assert (job.spec["name"], job.spec["labels"], job.spec["resources"]["priority"]) == ("urgent", {"team": "web"}, 9)
    assert take().lease.job_id == late.id


def test_an_ended_job_may_be_named_but_has_no_priority(database, submit):
    job = submit()
    with database.write() as session:
        commands.cancel(session, job.id, "api")
        jobs.edit(session, jobs.locked(session, job.id), name="a failure", labels={}, priority=0)
    with pytest.raises(Conflict, match="has no place in a queue"), database.write() as session:
        jobs.edit(session, jobs.locked(session, job.id), name=None, labels={}, priority=1)
    with database.read() as session:
        assert jobs.get(session, job.id).name == "a failure"


def test_a_fork_remembers_where_it_comes_from(database, make_spec):
    with database.write() as session:
        job, _ = jobs.create(session, spec=make_spec(), plan={}, forked_from={"job": 1, "step": 20})
    with database.read() as session:
        assert jobs.get(session, job.id).forked_from == {"job": 1, "step": 20}
