"""Jobs that are deleted, and the folders that they leave.

The row goes with its log and commands, in one transaction that notes the folders to look through: that of the job, and that of a
job whose checkpoint was kept for it alone. The files go after the commit; the note stays until they have gone, for whoever dies
in between.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete as delete_from
from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from store import pins
from store.errors import Conflict
from store.jobs import locked
from store.states import FINAL
from store.tables import Job, Leftover

_NAMED = 3


def delete(session: Session, job_id: int) -> None:
    """Forget the job and its log; its files are the caller's to remove, after the commit.

    Raises NotFound, and Conflict where it has not ended, or where jobs that have not ended are pinned to its checkpoints.
    """
    job = locked(session, job_id)
    if job.state not in FINAL:
        raise Conflict(f"job {job_id} has not ended: it is {job.state}; cancel it, or wait for its end")
    waiting = select(Job.id).where(Job.pinned_job == job_id, Job.state.not_in(FINAL)).order_by(Job.id).limit(_NAMED + 1)
    if users := list(session.scalars(waiting)):
        named = ", ".join(map(str, users[:_NAMED])) + (" and others" if len(users) > _NAMED else "")
        raise Conflict(
            f"jobs that have not ended begin with checkpoints of job {job_id}: {named}; cancel them, or wait for their end"
        )
    pins.let_go(session, pins.ended(session, job_id))
    _note(session, {job_id} if job.pinned_job is None else {job_id, job.pinned_job})
    session.execute(delete_from(Job).where(Job.id == job_id), execution_options={"synchronize_session": False})


def leftovers(session: Session) -> list[int]:
    """The jobs, deleted or not, whose folders are to be looked through."""
    return list(session.scalars(select(Leftover.job_id).order_by(Leftover.job_id)))


def cleared(session: Session, job_id: int) -> None:
    """Nothing is left in this job's folder that nobody needs."""
    session.execute(delete_from(Leftover).where(Leftover.job_id == job_id), execution_options={"synchronize_session": False})


def _note(session: Session, job_ids: Iterable[int]) -> None:
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    rows = [{"job_id": job_id} for job_id in sorted(job_ids)]
    session.execute(insert(Leftover).values(rows).on_conflict_do_nothing())
