"""Who runs a job: claimed in one statement, fenced by `attempt`, taken back when the worker is not heard of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select, true, update
from sqlalchemy.orm import Session

from core.events import Failure, JobState
from store.capacity import Capacity, on_cpu, on_gpus, taken
from store.changes import change
from store.clock import moment
from store.fence import Lease, held, hold, lost
from store.order import ORDER, before
from store.states import FinalState
from store.tables import Job, Worker

__all__ = ["Capacity", "Claim", "Lease", "claim", "finish", "give_back", "pause", "reap", "release", "renew"]


@dataclass(frozen=True)
class Claim:
    """What a worker got: the lease, and what it needs to run the job."""

    lease: Lease
    spec: dict[str, Any]
    gpus: int
    """How many of the worker's GPUs it takes; none means a CPU slot."""
    plan: dict[str, Any]
    seconds_left: float | None = None
    """For how long it may still run, over this and all later attempts; None: as long as it takes."""


def claim(session: Session, *, owner: str, queues: Collection[str], capacity: Capacity, seconds: float) -> Claim | None:
    """The best waiting job that fits, now leased to `owner`; None where there is none.

    Highest priority first, then the longest waiting. No job can be claimed twice, however many workers ask at once. A worker
    that drains gets none.

    The first waiting job that needs more GPUs than are free, though not more than the worker has, reserves those that are and
    those that become free: no job that waits behind it gets one of them. Nothing of that is stored; it ends when that job runs,
    is cancelled or paused, or is no longer before the others.
    """
    waiting = and_(Job.state == "queued", Job.queue.in_(queues))
    drains = select(Worker.name).where(Worker.name == owner, Worker.draining).exists()
    best = (
        select(Job.id)
        .where(waiting, _fits(capacity, _reserved_by(session, waiting, capacity)), ~drains)
        .order_by(*ORDER)
        .limit(1)
        .with_for_update(skip_locked=True, key_share=True)
        .scalar_subquery()
    )
    job = change(
        session,
        Job.id == best,
        "running",
        by=owner,
        attempt=Job.attempt + 1,
        lease_owner=owner,
        lease_until=moment(session) + seconds,
        claimed_at=moment(session),
        started_at=func.coalesce(Job.started_at, moment(session)),
    )
    if job is None:
        return None
    return Claim(Lease(job.id, job.attempt, owner, seconds), job.spec, capacity.taken(job.gpus), job.plan, _left(job))


def _left(job: Job) -> float | None:
    hours = job.spec["resources"].get("max_hours")  # specs of earlier versions lack it
    return None if hours is None else hours * 3600 - job.ran_seconds


def _fits(capacity: Capacity, ahead: Job | None) -> ColumnElement[bool]:
    """What is free suffices, and is not reserved by the job `ahead`."""
    return or_(and_(on_gpus(capacity), true() if ahead is None else before(ahead)), on_cpu(capacity))


def _reserved_by(session: Session, waiting: ColumnElement[bool], capacity: Capacity) -> Job | None:
    """The first waiting job that this worker could run, had it more GPUs free."""
    if not 0 < capacity.gpus_free < capacity.gpus:
        return None
    wanted = taken(capacity)
    blocked = select(Job).where(waiting, wanted > capacity.gpus_free, wanted <= capacity.gpus).order_by(*ORDER).limit(1)
    return session.scalars(blocked).one_or_none()


def renew(session: Session, lease: Lease) -> bool:
    """Hold the job for `lease.seconds` from now; False where it was lost. A late renewal counts if nobody took the job."""
    statement = update(Job).where(held(lease)).values(lease_until=moment(session) + lease.seconds).returning(Job.id)
    return session.execute(statement, execution_options={"synchronize_session": False}).one_or_none() is not None


def finish(session: Session, lease: Lease, state: FinalState, failure: Failure | None = None) -> None:
    """End the job: `succeeded`, `failed` or `cancelled`. Raises LeaseLost."""
    reason = failure.message if failure else "cancelled on request" if state == "cancelled" else None
    if change(session, held(lease), state, by=lease.owner, reason=reason, failure=failure) is None:
        raise lost(lease)


def give_back(session: Session, lease: Lease, *, reason: str, failure: Failure | None = None, counted: bool = False) -> JobState:
    """Put the job back into its queue, without losing its place; the new state is returned.

    A `counted` one is a failed try: when `max_attempts` of them came in a row, the job ends as failed, by `failure`. A cancel
    or a pause that was asked for is obeyed: this is how a worker pauses a job. Raises LeaseLost.
    """
    job = hold(session, lease)
    return _return(session, job, by=lease.owner, reason=reason, failure=failure, counted=counted)


def pause(session: Session, lease: Lease, *, reason: str) -> JobState:
    """Pause the job, as its own rules want; a cancel that was asked for goes before. The new state is returned.

    Raises LeaseLost.
    """
    return _return(session, hold(session, lease), by=lease.owner, reason=reason, failure=None, counted=False, to="paused")


def reap(session: Session) -> list[int]:
    """Take back the jobs whose lease ran out; their ids. Any number of reapers may run at once."""
    return _take(session, Job.lease_until < moment(session), by="reaper")


def release(session: Session, owner: str) -> list[int]:
    """Take back the jobs of a worker that is known to be dead; their ids."""
    return _take(session, Job.lease_owner == owner, by="reaper")


def _take(session: Session, which: ColumnElement[bool], by: str) -> list[int]:
    statement = (
        select(Job).where(Job.state == "running", which).order_by(Job.id).with_for_update(skip_locked=True, key_share=True)
    )
    jobs = list(session.scalars(statement, execution_options={"populate_existing": True}))
    for job in jobs:
        failure = Failure(
            type="worker_lost",
            message=f"the worker {job.lease_owner} died or was cut off",
            hint="Look at that worker's own log and at the host's memory; the job can be submitted again as it is.",
        )
        _return(session, job, by=by, reason=failure.message, failure=failure, counted=True)
    return [job.id for job in jobs]


def _return(
    session: Session, job: Job, *, by: str, reason: str, failure: Failure | None, counted: bool, to: JobState = "queued"
) -> JobState:  # fmt: skip
    """`job` is locked by this transaction."""
    state = to
    failures = job.failures + counted
    if job.requested == "cancel":
        state, reason, failure = "cancelled", "cancelled on request", None
    elif counted and failures >= job.max_attempts:
        state = "failed"
    elif job.requested == "pause" and to != "paused":
        state, reason = "paused", "paused on request"
    same = and_(Job.id == job.id, Job.attempt == job.attempt)
    if (
        change(session, same, state, by=by, reason=reason, failure=failure if state == "failed" else None, failures=failures)
        is None
    ):
        raise RuntimeError(f"job {job.id} changed while it was locked")
    return state
