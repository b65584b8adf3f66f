"""What people ask of a job that runs. The supervisor polls for it; a row's done mark commits with the event that tells of it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from store.changes import change
from store.clock import moment, now
from store.errors import Conflict, NotFound
from store.fence import Lease, hold
from store.states import FINAL
from store.tables import Command, Job


@dataclass(frozen=True)
class Pending:
    """A command not yet obeyed, and the lease of the one who is to obey it."""

    id: int
    kind: str
    by: str
    lease: Lease


def cancel(session: Session, job_id: int, by: str) -> Job:
    """Cancel the job: at once while it waits, by its worker while it runs. Asking twice is asking once.

    Raises NotFound, and Conflict where it has ended.
    """
    statement = select(Job).where(Job.id == job_id).with_for_update(key_share=True)
    job = session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    if job.state in FINAL:
        raise Conflict(f"job {job_id} has ended already: it is {job.state}")
    if job.state == "queued":
        return change(session, Job.id == job_id, "cancelled", by=by, reason="cancelled on request") or job
    if job.requested is None:
        session.add(Command(job_id=job_id, kind="cancel", by=by, created_at=now(session)))
        job.requested = "cancel"
        session.flush()
    return job


def pending(session: Session, lease: Lease) -> list[Pending]:
    """The commands for this job that are not done, oldest first."""
    statement = select(Command.id, Command.kind, Command.by).where(Command.job_id == lease.job_id, Command.done_at.is_(None))
    return [Pending(*row, lease=lease) for row in session.execute(statement.order_by(Command.id))]


def done(session: Session, command: Pending) -> None:
    """Mark a command as obeyed. Raises LeaseLost; does nothing where the end of the job has marked it."""
    marked = session.execute(select(Command.done_at).where(Command.id == command.id)).scalar_one_or_none()
    if marked is not None:
        return
    hold(session, command.lease)
    statement = update(Command).where(Command.id == command.id, Command.done_at.is_(None)).values(done_at=moment(session))
    session.execute(statement, execution_options={"synchronize_session": False})
