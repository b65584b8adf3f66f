"""The one statement that changes a job's state, with the events that tell of it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, case, null, update
from sqlalchemy.orm import Session

from core.events import EndData, Failure, JobState, StateData
from store.clock import moment
from store.events import NewEvent, record
from store.states import FINAL, sources
from store.tables import Command, Job


def change(
    session: Session,
    where: ColumnElement[bool],
    to: JobState,
    *,
    by: str,
    reason: str | None = None,
    failure: Failure | None = None,
    **values: Any,
) -> Job | None:
    """Move the job that `where` names to state `to`, if the table of states allows it; None where it does not, or no such job.

    Appends the `state` event, and for a final state `end` after it, in the same transaction. Where the job comes to rest, in a
    final state or paused, what was still asked of it is moot; but what is asked of a paused job's groups stays. `values` are
    further columns.
    """
    final = to in FINAL
    if to != "running":
        values |= {"lease_owner": null(), "lease_until": null(), "claimed_at": null(), "ran_seconds": _ran(session)}
    if final or to == "paused":
        values |= {"requested": null()}
    if final:
        values |= {"ended_at": moment(session), "failure": failure.model_dump() if failure else null()}
    statement = (
        update(Job)
        .where(where, Job.state.in_(sources(to)))
        .values(state=to, last_seq=Job.last_seq + (2 if final else 1), **values)
        .returning(Job, moment(session))
    )
    row = session.execute(statement, execution_options={"synchronize_session": False, "populate_existing": True}).one_or_none()
    if row is None:
        return None
    job, at = row
    events = [_event(job, StateData(state=to, reason=reason, by=by))]
    if final:
        events.append(_event(job, EndData(state=to, failure=failure, last_seq=job.last_seq)))
    if final:
        close_commands(session, job.id)
    elif to == "paused":
        close_commands(session, job.id, "cancel", "pause")
    record(session, job.id, attempt=job.attempt, last_seq=job.last_seq, at=at, events=events)
    return job


def _event(job: Job, data: StateData | EndData) -> NewEvent:
    return NewEvent(job.step, data.kind, data.model_dump())


def _ran(session: Session) -> ColumnElement[float]:
    """The running time with that of the attempt which ends now. Past its lease a trainer stands still."""
    at = moment(session)
    end = case((Job.lease_until < at, Job.lease_until), else_=at)
    return case((Job.claimed_at.is_(None), Job.ran_seconds), else_=Job.ran_seconds + end - Job.claimed_at)


def close_commands(session: Session, job_id: int, *kinds: str) -> None:
    """Mark what is still asked of the job as done: all of it, or what is of these kinds."""
    statement = update(Command).where(Command.job_id == job_id, Command.done_at.is_(None))
    if kinds:
        statement = statement.where(Command.kind.in_(kinds))
    session.execute(statement.values(done_at=moment(session)), execution_options={"synchronize_session": False})
