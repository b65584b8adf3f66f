"""Changes to parameter groups, from being asked for to the log: never lost, never twice."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from core.adjustments import RULES, Adjustment
from core.events import AdjustedData
from store import adjustments, commands, events, jobs, leases
from store.errors import Conflict, LeaseLost, NotFound
from store.events import NewEvent


def ask(database, job_id, group="head", step=None, **changes):
    with database.write() as session:
        job = adjustments.open_job(session, job_id)
        return adjustments.adjust(session, job, Adjustment(group, changes or {"lr": 0.5}, step, "api"))


def event(one, step, before=1.0):
    changes = {key: {"from": before, "to": value} for key, value in one.changes.items()}
    data = AdjustedData(id=one.id, group=one.group, step=step, changes=changes, by=one.by)
    return NewEvent(step, data.kind, data.model_dump(mode="json"))


def append(database, lease, *new):
    with database.write() as session:
        events.append(session, lease, new)


def look(database, what, job_id):
    with database.read() as session:
        return what(session, jobs.get(session, job_id) if what is adjustments.pending else job_id)


def rewound(step):
    return NewEvent(step, "rewound", {"to_step": step})


def test_what_is_asked_is_kept_in_order_with_all_that_it_says(database, running):
    first = ask(database, running.job_id, "head/no_decay", lr=0.1, betas=[0.8, 0.9])
    second = ask(database, running.job_id, "stem", step=50, freeze=False)
    assert look(database, adjustments.asked, running.job_id) == [first, second]
    assert second == Adjustment("stem", {"freeze": False}, 50, "api", second.id)
    with database.read() as session:
        told = commands.pending(session, running)
        assert jobs.get(session, running.job_id).requested is None
    assert [(one.kind, one.id, one.payload) for one in told] == [
        ("adjust", first.id, {"group": "head/no_decay", "changes": {"lr": 0.1, "betas": [0.8, 0.9]}, "step": None}),
        ("adjust", second.id, {"group": "stem", "changes": {"freeze": False}, "step": 50}),
    ]


def test_it_is_done_with_its_event_and_not_without_it(database, running, iterations):
    one = ask(database, running.job_id)
    other = ask(database, running.job_id)
    append(database, running, iterations(0, [1.0] * 10), event(one, 10))
    assert look(database, adjustments.asked, running.job_id) == [other]

    def die():
        with database.write() as session:
            events.append(session, running, [event(other, 10)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        die()
    assert look(database, adjustments.asked, running.job_id) == [other]
    assert look(database, adjustments.done, running.job_id) == [Adjustment("head", {"lr": 0.5}, 10, "api", one.id)]


def test_who_lost_the_lease_does_nothing_of_it(database, clock, running, take):
    one = ask(database, running.job_id)
    clock.forward(61)
    with database.write() as session:
        leases.reap(session)
    take("two")
    with pytest.raises(LeaseLost):
        append(database, running, event(one, 5))
    assert look(database, adjustments.asked, running.job_id) == [one]


def test_what_a_rewind_makes_void_is_to_come_again_at_its_step_and_known_once(database, running, iterations):
    early, late = ask(database, running.job_id), ask(database, running.job_id, lr=0.25)
    append(database, running, iterations(0, [1.0] * 10), event(early, 10), iterations(10, [1.0] * 10), event(late, 20))
    assert look(database, adjustments.pending, running.job_id) == []
    append(database, running, rewound(15))
    again = Adjustment("head", {"lr": 0.25}, 20, "api", late.id)
    assert look(database, adjustments.pending, running.job_id) == [again]
    append(database, running, iterations(15, [1.0] * 5), event(late, 20))
    assert look(database, adjustments.pending, running.job_id) == []
    assert [one.id for one in look(database, adjustments.done, running.job_id)] == [early.id, late.id]


def test_one_at_the_very_step_of_the_rewind_stays_done(database, running, iterations):
    one = ask(database, running.job_id)
    append(database, running, iterations(0, [1.0] * 10), event(one, 10), rewound(10))
    assert look(database, adjustments.pending, running.job_id) == []


def test_a_job_that_waits_or_is_paused_keeps_it_for_its_worker(database, submit, take):
    job = submit()
    one = ask(database, job.id)
    with database.write() as session:
        commands.pause(session, job.id, "api")
    other = ask(database, job.id)
    with database.write() as session:
        commands.resume(session, job.id, "api")
    lease = take().lease
    with database.write() as session:
        commands.pause(session, job.id, "api")
        leases.give_back(session, lease, reason="…")
    assert look(database, adjustments.asked, job.id) == [one, other]
    with database.read() as session:
        assert {command.kind for command in commands.pending(session, lease)} == {"adjust"}


def test_a_pause_that_is_withdrawn_takes_nothing_else_with_it(database, running):
    one = ask(database, running.job_id)
    with database.write() as session:
        commands.pause(session, running.job_id, "api")
        commands.resume(session, running.job_id, "api")
    assert look(database, adjustments.asked, running.job_id) == [one]


def test_the_end_of_a_job_leaves_none_open(database, running):
    ask(database, running.job_id, step=99)
    with database.write() as session:
        leases.finish(session, running, "succeeded")
    assert look(database, adjustments.asked, running.job_id) == []
    assert look(database, adjustments.pending, running.job_id) == []


def test_it_is_refused_where_it_cannot_be_done_any_more(database, running, iterations):
    append(database, running, iterations(0, [1.0] * 10))
    with pytest.raises(Conflict, match=r"step 9 is over: job .* is at step 10"):
        ask(database, running.job_id, step=9)
    assert ask(database, running.job_id, step=10).step == 10
    with database.write() as session:
        commands.cancel(session, running.job_id, "api")
    with pytest.raises(Conflict, match="is being cancelled"):
        ask(database, running.job_id)
    with database.write() as session:
        leases.finish(session, running, "cancelled")
    with pytest.raises(Conflict, match="it is cancelled"):
        ask(database, running.job_id)
    with pytest.raises(NotFound):
        ask(database, 404)


def test_many_that_ask_at_once_are_all_heard_in_the_order_of_their_ids(database, running):
    threads = [threading.Thread(target=ask, args=(database, running.job_id)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = look(database, adjustments.asked, running.job_id)
    assert len(found) == len({one.id for one in found}) == 8


def test_the_cuts_of_rules_are_done_again_as_the_log_has_them_but_void_ones_are_decided_anew(database, running, iterations):
    def cut(step, lr):
        data = AdjustedData(group="head", step=step, by=RULES, factor=0.5, changes={"lr": {"from": 2 * lr, "to": lr}})
        return NewEvent(step, data.kind, data.model_dump(mode="json"))

    one, other = ask(database, running.job_id, lr=0.8), ask(database, running.job_id, lr=0.6)
    append(database, running, iterations(0, [1.0] * 10), event(one, 10), cut(10, 0.4), event(other, 10))
    append(database, running, iterations(10, [1.0] * 10), cut(20, 0.3))
    kept = Adjustment("head", {"lr": 0.4}, 10, RULES, None, 0.5)
    undone = Adjustment("head", {"lr": 0.3}, 20, RULES, None, 0.5)
    people = [replace(one, step=10), replace(other, step=10)]
    assert look(database, adjustments.history, running.job_id) == [people[0], kept, people[1], undone]
    append(database, running, rewound(15))
    assert look(database, adjustments.history, running.job_id) == [people[0], kept, people[1]]
    append(database, running, rewound(5))
    assert look(database, adjustments.history, running.job_id) == people
    assert look(database, adjustments.pending, running.job_id) == people
    assert look(database, adjustments.done, running.job_id) == people
