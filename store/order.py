"""Which of the waiting jobs goes first: the highest priority, then the longest waiting."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, or_

from store.tables import Job

ORDER = Job.priority.desc(), Job.queued_at, Job.id


def before(other: Job) -> ColumnElement[bool]:
    """Whether a job goes before that one: `ORDER` as a condition."""
    longer = or_(Job.queued_at < other.queued_at, and_(Job.queued_at == other.queued_at, Job.id < other.id))
    return or_(Job.priority > other.priority, and_(Job.priority == other.priority, longer))
