"""The fence: every write of a running job asserts job, attempt and state."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.orm import Session

from store.errors import LeaseLost
from store.tables import Job


@dataclass(frozen=True)
class Lease:
    """One attempt of one job, as the worker that claimed it holds it. `attempt` is the fencing token."""

    job_id: int
    attempt: int
    owner: str
    seconds: float
    """For how long a claim or a renewal holds."""


def held(lease: Lease) -> ColumnElement[bool]:
    """The condition that this attempt still runs. A late supervisor counts as long as nobody took the job."""
    return and_(Job.id == lease.job_id, Job.attempt == lease.attempt, Job.state == "running")


def hold(session: Session, lease: Lease) -> Job:
    """The job, locked until the transaction ends. Raises LeaseLost."""
    statement = select(Job).where(held(lease)).with_for_update(key_share=True)
    job = session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()
    if job is None:
        raise lost(lease)
    return job


def lost(lease: Lease) -> LeaseLost:
    """What a worker is told that writes too late."""
    return LeaseLost(f"attempt {lease.attempt} of job {lease.job_id} is no longer {lease.owner}'s; stop it and write nothing")
