"""Jobs as people see them: made, read, listed, counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, func, literal, or_, select, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.events import JobState, StateData
from store import datasets
from store.capacity import Capacity, rivals
from store.clock import now
from store.errors import Conflict, NotFound, PinLost
from store.events import NewEvent, checkpoints, record
from store.order import before
from store.pins import Pin
from store.states import FINAL, STATES
from store.tables import Job

UNFINISHED = [state for state in STATES if state not in FINAL]


def create(
    session: Session,
    *,
    spec: dict[str, Any],
    plan: dict[str, Any],
    key: str | None = None,
    body_hash: str | None = None,
    forked_from: dict[str, Any] | None = None,
    pinned: Pin | None = None,
) -> tuple[Job, bool]:
    """A new job, queued, and True; or the one that the same `key` and body made before, and False.

    `spec` is resolved; `plan` holds the plan's facts, of which `steps.total` is read here; `forked_from` is `{job, step}`;
    `pinned` is the checkpoint that it begins with, which is kept until it has ended. Raises Conflict where the key was used
    for another body, PinLost where that checkpoint, or the uploaded dataset, is gone.
    """
    if key is not None and (job := made_before(session, key, body_hash)) is not None:
        return job, False
    job = _new(spec, plan, now(session))
    job.idempotency_key, job.body_hash, job.forked_from = key, body_hash, forked_from
    datasets.hold(session, spec["dataset"]["source"])
    if pinned is not None:
        _hold(session, pinned)
        job.pinned_job, job.pinned_step = pinned
    try:
        with session.begin_nested():
            session.add(job)
            session.flush()
    except IntegrityError:
        # PostgreSQL: another request with this key committed between the look and the insert
        if key is None or (earlier := made_before(session, key, body_hash)) is None:
            raise
        return earlier, False
    queued = NewEvent(0, StateData.kind, StateData(state="queued", by="api").model_dump())
    record(session, job.id, attempt=0, last_seq=1, at=job.created_at, events=[queued])
    return job, True


def _hold(session: Session, pinned: Pin) -> None:
    """See that the checkpoint is still kept. Its job stays locked: whoever prunes it decides before, or sees the pin."""
    try:
        locked(session, pinned.job)
    except NotFound:
        raise PinLost(f"job {pinned.job} was deleted meanwhile, with its checkpoints") from None
    if pinned.step not in {checkpoint["step"] for checkpoint in checkpoints(session, pinned.job)}:
        raise PinLost(f"job {pinned.job} no longer keeps its checkpoint of step {pinned.step}; send it again")


def _new(spec: dict[str, Any], plan: dict[str, Any], at: float) -> Job:
    resources = spec["resources"]
    return Job(
        name=spec["name"],
        labels=spec["labels"],
        spec=spec,
        plan=plan,
        state="queued",
        queue=resources["queue"],
        priority=resources["priority"],
        gpus=resources["gpus"],
        attempt=0,
        failures=0,
        max_attempts=resources["max_attempts"],
        last_seq=1,
        step=0,
        epoch=0,
        steps_total=plan.get("steps", {}).get("total"),
        epochs=spec["training"]["epochs"],
        latest={},
        created_at=at,
        queued_at=at,
    )


def made_before(session: Session, key: str, body_hash: str | None) -> Job | None:
    """The job that this Idempotency-Key made, or None. Raises Conflict where it made it from another body."""
    job = session.scalars(select(Job).where(Job.idempotency_key == key)).one_or_none()
    if job is not None and job.body_hash != body_hash:
        raise Conflict(f"this Idempotency-Key made job {job.id} from another body; send a new key with a new body")
    return job


def get(session: Session, job_id: int) -> Job:
    """The job. Raises NotFound."""
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job


def locked(session: Session, job_id: int) -> Job:
    """The job as it is now, locked until the transaction ends. Raises NotFound."""
    statement = select(Job).where(Job.id == job_id).with_for_update(key_share=True)
    job = session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job


def edit(session: Session, job: Job, *, name: str | None, labels: dict[str, str], priority: int) -> None:
    """Change what of a `locked` job may change; its spec says the same. Raises Conflict at the priority of an ended job."""
    if priority != job.priority and job.state in FINAL:
        raise Conflict(f"job {job.id} has ended already: it is {job.state}, and has no place in a queue")
    job.name, job.labels, job.priority = name, labels, priority
    resources = {**job.spec["resources"], "priority": priority}
    job.spec = {**job.spec, "name": name, "labels": labels, "resources": resources}
    session.flush()


def find(
    session: Session,
    *,
    state: JobState | None = None,
    labels: Mapping[str, str] | None = None,
    limit: int = 50,
    after: int | None = None,
) -> tuple[list[Job], bool]:
    """A page of jobs, newest first, and whether there are more; the next page is `after` the last one's id.

    `labels` must all be there, with these values.
    """
    statement = select(Job).order_by(Job.id.desc()).limit(limit + 1)
    if state is not None:
        statement = statement.where(Job.state == state)
    if after is not None:
        statement = statement.where(Job.id < after)
    for name, value in (labels or {}).items():
        statement = statement.where(_labelled(session, name, value))
    jobs = list(session.scalars(statement))
    return jobs[:limit], len(jobs) > limit


def _labelled(session: Session, name: str, value: str) -> ColumnElement[bool]:
    if session.get_bind().dialect.name == "postgresql":
        return type_coerce(Job.labels, JSONB).contains({name: value})
    # a JSON path would need the name quoted, and SQLite cannot quote every name in one
    label = func.json_each(Job.labels).table_valued("key", "value")
    return select(literal(1)).select_from(label).where(label.c.key == name, label.c.value == value).exists()


def position(session: Session, job: Job, workers: Collection[Capacity] = ()) -> int | None:
    """How many jobs of its queue go before it (0: it is the next one); None where it does not wait.

    `workers`: what those have that serve the queue. Only what one of them could run in place of this job counts: a job for
    the CPU holds up none for a GPU, and one that needs more GPUs than any of them has holds up nobody. Where none of them
    could run this one, all count that go before it whenever one comes.
    """
    if job.state != "queued":
        return None
    waiting = select(func.count()).select_from(Job).where(Job.state == "queued", Job.queue == job.queue, before(job))
    if fitting := [capacity for capacity in workers if capacity.fits(job.gpus)]:
        waiting = waiting.where(or_(*(rivals(capacity, job.gpus) for capacity in fitting)))
    return session.execute(waiting).scalar_one()


def ran_seconds(session: Session, job: Job) -> float:
    """How long it has run, over all attempts. Past its lease a trainer stands still, so that is not counted."""
    if job.claimed_at is None or job.lease_until is None:
        return job.ran_seconds
    return job.ran_seconds + max(0.0, min(now(session), job.lease_until) - job.claimed_at)


def counts(session: Session) -> dict[str, dict[str, int]]:
    """How many jobs wait and run, by queue and state: `{"default": {"queued": 3, "running": 1}}`."""
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    unfinished = select(Job.queue, Job.state, func.count()).where(Job.state.in_(UNFINISHED)).group_by(Job.queue, Job.state)
    for queue, state, number in session.execute(unfinished):
        found[queue][state] = number
    return dict(found)
