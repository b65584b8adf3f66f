from __future__ import annotations

import random
import threading

import orjson
import pytest

from core import events as schema
from core.events import Row
from store import commands, events, jobs, leases
from store.database import Database
from store.errors import LeaseLost, NotFound
from store.events import NewEvent
from store.progress import Progress

LINE = {"level": "info", "message": "hello"}


def append(database, lease, *new):
    with database.write() as session:
        return events.append(session, lease, new)


def whole(database, job_id):
    with database.read() as session:
        return events.read(session, job_id, limit=1_000_000)


def test_numbers_follow_one_another_from_one(database, running, iterations):
    assert append(database, running, iterations(0, [1.0]), iterations(1, [0.5]), iterations(2, [0.4])) == 5
    assert append(database, running, iterations(3, [0.3])) == 6
    assert [event.seq for event in whole(database, running.job_id)] == [1, 2, 3, 4, 5, 6]


def test_nothing_takes_no_number(database, running):
    assert append(database, running) == 2
    assert len(whole(database, running.job_id)) == 2


def test_an_event_is_stored_as_it_was_sent(database, clock, running):
    clock.forward(0.5)
    message = 'é "quoted"\n日本\x00'
    append(database, running, NewEvent(7, "log", {"level": "warning", "message": message}))
    event = whole(database, running.job_id)[-1]
    assert (event.seq, event.at, event.attempt, event.step, event.kind) == (3, "2027-01-15T08:00:00.500Z", 1, 7, "log")
    envelope = event.envelope()
    assert b"\n" not in envelope
    assert orjson.loads(envelope) == {
        "seq": 3,
        "at": "2027-01-15T08:00:00.500Z",
        "attempt": 1,
        "step": 7,
        "kind": "log",
        "data": {"level": "warning", "message": message},
    }
    schema.Event.model_validate_json(envelope)


@pytest.mark.parametrize("kind", ["state", "end", "iteration"])
def test_a_trainer_cannot_write_what_is_not_its_own(database, running, kind):
    with pytest.raises(ValueError, match=f"'{kind}' is no event that a trainer writes"):
        append(database, running, NewEvent(0, "log", LINE), NewEvent(0, kind, {}))
    assert len(whole(database, running.job_id)) == 2


def test_pages_meet_without_a_gap(database, running, iterations):
    append(database, running, *(iterations(step, [float(step)]) for step in range(10)))
    seen, after = [], 0
    with database.read() as session:
        while page := events.read(session, running.job_id, after=after, limit=5):
            seen += page
            after = page[-1].seq
    assert seen == whole(database, running.job_id)
    assert len(seen) == 12


def test_kinds_leave_the_others_out(database, running, iterations):
    append(database, running, iterations(0, [1.0]), NewEvent(1, "log", LINE), iterations(1, [0.5]))
    with database.read() as session:
        assert [e.seq for e in events.read(session, running.job_id, limit=10, kinds=["iterations"])] == [3, 5]
        assert [e.seq for e in events.read(session, running.job_id, limit=1, after=3, kinds={"iterations", "log"})] == [4]
        assert events.read(session, running.job_id, limit=10, kinds=["groups"]) == []


def test_the_last_number_says_whether_more_can_follow(database, running):
    with database.read() as session:
        assert events.last_seq(session, running.job_id) == (2, False)
    with database.write() as session:
        leases.finish(session, running, "succeeded")
    with database.read() as session:
        assert events.last_seq(session, running.job_id) == (4, True)
        with pytest.raises(NotFound):
            events.last_seq(session, 404)


def test_the_latest_of_a_kind(database, running):
    append(database, running, *(NewEvent(0, "log", {**LINE, "message": text}) for text in "abc"))
    with database.read() as session:
        assert events.latest(session, running.job_id, "log") == {"level": "info", "message": "c"}
        assert events.latest(session, running.job_id, "transfer") is None


def test_the_job_shows_where_it_stands(database, running, iterations, epoch, checkpoint):
    append(database, running, iterations(0, [0.9, 0.8]))
    append(
        database, running, epoch(0, 2, mean_loss=0.85, top1=0.5), checkpoint(2, top1=0.5), iterations(2, [0.7], epoch=1, lr=0.01)
    )
    with database.read() as session:
        job = jobs.get(session, running.job_id)
    assert (job.step, job.epoch) == (3, 1)
    assert job.latest == {
        "loss": 0.7,
        "lr": {"default": 0.01},
        "mean_loss": 0.85,
        "validation": {"top1": 0.5},
        "samples_per_second": 100,
    }
    assert job.best == {"step": 2, "epoch": 0, "top1": 0.5}


def test_a_worse_checkpoint_is_not_the_best(database, running, checkpoint):
    append(database, running, checkpoint(1, top1=0.6))
    append(database, running, checkpoint(2, epoch=1, top1=0.5, best=False))
    with database.read() as session:
        assert jobs.get(session, running.job_id).best["step"] == 1


def test_a_rewind_takes_back_what_the_job_shows(database, running, iterations, epoch, checkpoint):
    append(database, running, iterations(0, [0.9, 0.8]), epoch(0, 2, top1=0.5), checkpoint(2, top1=0.5))
    append(database, running, iterations(2, [0.7, 0.6], epoch=1), epoch(1, 4, top1=0.6), checkpoint(4, epoch=1, top1=0.6))
    append(database, running, NewEvent(2, "rewound", {"to_step": 2}))
    with database.read() as session:
        job = jobs.get(session, running.job_id)
        assert (job.step, job.epoch, job.latest["loss"], job.best["step"]) == (2, 1, 0.8, 2)
        assert events.losses(session, job.id).values.tolist() == [0.9, 0.8]
    append(database, running, NewEvent(0, "rewound", {"to_step": 0}))
    with database.read() as session:
        job = jobs.get(session, running.job_id)
        assert (job.step, job.epoch, job.latest, job.best) == (0, 0, {}, None)
        assert len(events.losses(session, job.id)) == 0


def random_log(dice, iterations, epoch, checkpoint):
    """A log as a trainer that dies now and then writes it: it goes on from a checkpoint, or from the start."""
    step, number, saved = 0, 0, [(0, 0)]
    for _ in range(dice.randint(5, 25)):
        size = dice.randint(1, 6)
        yield iterations(step, [dice.choice([dice.random(), "nan", "inf", "-inf"]) for _ in range(size)], epoch=number)
        step += size
        if dice.random() < 0.4:
            yield epoch(number, step, mean_loss=dice.random(), top1=dice.random())
            yield checkpoint(step, epoch=number, best=dice.random() < 0.5, top1=dice.random())
            number += 1
            saved.append((step, number))
        if dice.random() < 0.3:
            saved = saved[: dice.randint(1, len(saved))]
            step, number = saved[-1]
            yield NewEvent(step, "rewound", {"to_step": step})


@pytest.mark.parametrize("seed", range(8))
def test_what_the_job_shows_is_the_fold_of_its_log(database, running, iterations, epoch, checkpoint, seed):
    dice = random.Random(seed)
    log = list(random_log(dice, iterations, epoch, checkpoint))
    sent = 0
    while sent < len(log):
        size = dice.randint(1, 5)
        append(database, running, *log[sent : sent + size])
        sent += size

    folded = schema.fold(Row(seq, event.step, event.kind, event.data) for seq, event in enumerate(log, 3))
    chunks = [row.data for row in folded if row.kind == "iterations"]
    with database.read() as session:
        job = jobs.get(session, running.job_id)
        losses = events.losses(session, running.job_id)
        assert events.folded(session, running.job_id, {"epoch", "checkpoint"}) == [
            r for r in folded if r.kind in {"epoch", "checkpoint"}
        ]
    assert Progress(job.step, job.epoch, job.latest, job.best) == Progress().after_all(folded)
    assert losses.figures() == [loss for chunk in chunks for loss in chunk["losses"]]
    assert losses.steps.tolist() == list(range(len(losses))), "each step once"
    assert losses.epochs.tolist() == [chunk["epoch"] for chunk in chunks for _ in chunk["losses"]]


def test_the_kept_checkpoints_are_the_last_and_the_best(database, submit, take, checkpoint):
    submit(spec={"checkpoint": {"keep_last": 1, "keep_best": 1, "metric": "top1"}})
    lease = take().lease
    for step, top1 in enumerate([0.5, 0.9, 0.7, 0.9, 0.8], 1):
        append(database, lease, checkpoint(step, top1=top1, best=step in {1, 2}))
    with database.read() as session:
        kept = events.checkpoints(session, lease.job_id)
    assert [(data["step"], data["best"]) for data in kept] == [(2, True), (5, False)]
    assert kept[0]["path"] == "jobs/1/1/2"


@pytest.mark.parametrize(("keep_last", "kept"), [(3, [(1, False), (2, True)]), (2, [(2, True)]), (1, [])])
def test_a_rewound_checkpoint_is_not_listed_nor_one_that_had_made_way_for_it(database, submit, take, checkpoint, keep_last, kept):
    submit(spec={"checkpoint": {"keep_last": keep_last, "keep_best": 0, "metric": "top1"}})
    lease = take().lease
    append(database, lease, *(checkpoint(step, top1=step / 10) for step in (1, 2, 3)), NewEvent(2, "rewound", {"to_step": 2}))
    with database.read() as session:
        assert [(data["step"], data["best"]) for data in events.checkpoints(session, lease.job_id)] == kept


def test_no_checkpoints_before_the_first(database, running):
    with database.read() as session:
        assert events.checkpoints(session, running.job_id) == []
        with pytest.raises(NotFound):
            events.checkpoints(session, 404)


def test_a_log_that_many_write_at_once_has_no_gap_and_no_double(url, running, iterations):
    """The supervisor appends while the api takes commands and others try with a lease that is not theirs."""
    failed = []

    def supervise() -> None:
        own = Database(url)
        for step in range(40):
            append(own, running, iterations(step, [0.5]))
        own.dispose()

    def intrude() -> None:
        own = Database(url)
        for attempt in range(40):
            try:
                append(own, leases.Lease(running.job_id, attempt * 2, "other", 60), NewEvent(0, "log", LINE))
            except LeaseLost:
                failed.append(attempt)
        own.dispose()

    def ask() -> None:
        own = Database(url)
        for _ in range(20):
            with own.write() as session:
                commands.cancel(session, running.job_id, "api")
        own.dispose()

    threads = [threading.Thread(target=work) for work in (supervise, intrude, ask, ask)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = Database(url)
    log = whole(own, running.job_id)
    with own.read() as session:
        assert events.last_seq(session, running.job_id) == (42, False)
        assert len(commands.pending(session, running)) == 1
    own.dispose()
    assert [event.seq for event in log] == list(range(1, 43))
    assert [event.step for event in log][2:] == list(range(1, 41))
    assert len(failed) == 40


def test_two_who_append_for_one_attempt_take_different_numbers(url, running):
    def write(name: str) -> None:
        own = Database(url)
        for number in range(30):
            append(own, running, *[NewEvent(0, "log", {**LINE, "message": f"{name} {number}"})] * 2)
        own.dispose()

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = Database(url)
    log = whole(own, running.job_id)
    own.dispose()
    assert [event.seq for event in log] == list(range(1, 183))
    for name in "abc":
        mine = [orjson.loads(event.data)["message"] for event in log if f'"{name} ' in event.data]
        assert mine == [f"{name} {number}" for number in range(30) for _ in range(2)], "each one's own events keep their order"
