"""What people ask of a job. At once while nobody runs it; else the supervisor polls for it, and obeys.

A row's done mark commits with the event that tells of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.changes import change, close_commands
from store.clock import now
from store.errors import Conflict
from store.fence import Lease
from store.jobs import locked
from store.states import FINAL
from store.tables import Command, Job

CommandKind = Literal["adjust", "cancel", "pause"]


@dataclass(frozen=True)
class Pending:
    """A command not yet obeyed."""

    id: int
    kind: CommandKind
    by: str
    payload: dict[str, Any] | None = None


def cancel(session: Session, job_id: int, by: str) -> Job:
    """Cancel the job: at once while nobody runs it, else by its worker. It overrides a pause. Asking twice is asking once.

    Raises NotFound, and Conflict where it has ended.
    """
    job = unfinished(session, job_id)
    if job.state != "running":
        return change(session, Job.id == job_id, "cancelled", by=by, reason="cancelled on request") or job
    if job.requested != "cancel":
        _ask(session, job, "cancel", by)
    return job


def pause(session: Session, job_id: int, by: str) -> Job:
    """Pause the job: at once while it waits, by its worker while it runs. Asking twice is asking once.

    Raises NotFound, and Conflict where it has ended or is being cancelled.
    """
    job = unfinished(session, job_id)
    if job.requested == "cancel":
        raise Conflict(f"job {job_id} is being cancelled; it cannot be paused any more")
    if job.state == "queued":
        return change(session, Job.id == job_id, "paused", by=by, reason="paused on request") or job
    if job.state == "running" and job.requested is None:
        _ask(session, job, "pause", by)
    return job


def resume(session: Session, job_id: int, by: str) -> Job:
    """Put a paused job back into its queue, at its old place; withdraw a pause that was not yet obeyed.

    Of a job that waits or runs this asks nothing. Raises NotFound, and Conflict where it has ended or is being cancelled.
    """
    job = unfinished(session, job_id)
    if job.requested == "cancel":
        raise Conflict(f"job {job_id} is being cancelled; submit it again by a fork")
    if job.state == "paused":
        return change(session, Job.id == job_id, "queued", by=by, reason="resumed on request") or job
    if job.requested == "pause":
        job.requested = None
        close_commands(session, job_id, "pause")
        session.flush()
    return job


def unfinished(session: Session, job_id: int) -> Job:
    """The job, locked until the transaction ends. Raises NotFound, and Conflict where it has ended."""
    job = locked(session, job_id)
    if job.state in FINAL:
        raise Conflict(f"job {job_id} has ended already: it is {job.state}")
    return job


def _ask(session: Session, job: Job, kind: CommandKind, by: str) -> None:
    session.add(Command(job_id=job.id, kind=kind, by=by, created_at=now(session)))
    job.requested = kind
    session.flush()


def pending(session: Session, lease: Lease) -> list[Pending]:
    """The commands for this job that are not done, oldest first."""
    columns = (Command.id, Command.kind, Command.by, Command.payload)
    statement = select(*columns).where(Command.job_id == lease.job_id, Command.done_at.is_(None)).order_by(Command.id)
    return [Pending(row[0], cast("CommandKind", row[1]), row[2], row[3]) for row in session.execute(statement)]
