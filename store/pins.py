"""Pins: a checkpoint that a job begins with is kept until that job has ended, whatever its own job's rule says.

A pin is made under the lock of the job that it points at (`store.jobs.create`), and what is kept is read by those who append to
that job, or hold its lock: so a checkpoint is either pinned in time, or seen to be gone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import null, select, update
from sqlalchemy.orm import Session, aliased

from store.states import FINAL
from store.tables import Job


class Pin(NamedTuple):
    """A checkpoint, by its job and its step."""

    job: int
    step: int


def steps(session: Session, job_id: int) -> list[int]:
    """The steps of this job's checkpoints that others wait for, or train on."""
    statement = select(Job.pinned_step).where(Job.pinned_job == job_id, Job.pinned_step.is_not(None), Job.state.not_in(FINAL))
    return [step for step in session.scalars(statement.distinct()) if step is not None]


def over(session: Session) -> list[int]:
    """The ended jobs that ended jobs are still pinned to: nobody else prunes those."""
    held = aliased(Job)
    statement = select(held.id).join(Job, Job.pinned_job == held.id).where(Job.state.in_(FINAL), held.state.in_(FINAL))
    return list(session.scalars(statement.distinct().order_by(held.id)))


def ended(session: Session, job_id: int) -> list[int]:
    """The ended jobs that are still pinned to this one."""
    return list(session.scalars(select(Job.id).where(Job.pinned_job == job_id, Job.state.in_(FINAL))))


def let_go(session: Session, job_ids: Collection[int]) -> None:
    """Forget what these jobs were pinned to."""
    statement = update(Job).where(Job.id.in_(job_ids)).values(pinned_job=null(), pinned_step=null())
    session.execute(statement, execution_options={"synchronize_session": False})
