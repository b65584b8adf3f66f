from __future__ import annotations

from typing import get_args

import pytest

from store import events, jobs
from store.changes import change
from store.states import FINAL, STATES, TRANSITIONS, FinalState, sources
from store.tables import Job

PATHS = {"queued": [], "running": ["running"], "paused": ["running", "paused"], **{state: ["running", state] for state in FINAL}}
LEASE = {"lease_owner": "one", "lease_until": 0.0}


def move(database, job, to):
    with database.write() as session:
        return change(session, Job.id == job.id, to, by="test", **(LEASE if to == "running" else {}))


def test_the_final_states_are_those_that_nothing_leaves():
    assert set(get_args(FinalState)) == FINAL
    assert sources("cancelled") == {"queued", "running", "paused"}


@pytest.mark.parametrize("to", STATES)
@pytest.mark.parametrize("at", STATES)
def test_a_state_changes_as_the_table_says_and_no_other_way(database, submit, at, to):
    job = submit()
    for step in PATHS[at]:
        assert move(database, job, step)
    moved = move(database, job, to)
    allowed = to in TRANSITIONS[at]
    assert (moved is not None) == allowed
    with database.read() as session:
        assert jobs.get(session, job.id).state == (to if allowed else at)
        kinds = [event.kind for event in events.read(session, job.id, limit=100)]
    assert kinds.count("end") == (jobs_state_is_final := (to if allowed else at) in FINAL)
    assert not jobs_state_is_final or kinds[-2:] == ["state", "end"]
