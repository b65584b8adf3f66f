"""Every table. Times are epoch seconds by the database's clock (`store.clock`).

`migrations/` builds them, this file only describes them; `alembic check` holds the two together.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

BigInt = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite numbers rows by INTEGER columns alone; they hold 64 bits there."""
Json = JSON(none_as_null=True)

NAMES = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}
"""Every constraint has a name, so that a later migration can drop it on SQLite too."""


class Base(DeclarativeBase):
    """What the tables share."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text(),
        float: Double(),
        dict[str, Any]: Json,
        list[str]: Json,
        list[int]: Json,
    }


class Job(Base):
    """A job: its spec, where it stands, who runs it. The log (`EventRecord`) says how it got there."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(BigInt, primary_key=True)
    name: Mapped[str | None]
    labels: Mapped[dict[str, str]] = mapped_column(JSON().with_variant(JSONB(), "postgresql"))
    spec: Mapped[dict[str, Any]]  # resolved: defaults filled in, sources pinned
    plan: Mapped[dict[str, Any]]  # what the plan found, without its long lists

    state: Mapped[str]
    requested: Mapped[str | None]  # a command not yet obeyed
    queue: Mapped[str]
    priority: Mapped[int]
    gpus: Mapped[int | None]  # null: one where the worker has any

    attempt: Mapped[int] = mapped_column(default=0)  # the fence: rises with each claim, never falls
    failures: Mapped[int] = mapped_column(default=0)  # in a row; a new checkpoint sets it to zero
    max_attempts: Mapped[int]
    lease_owner: Mapped[str | None]
    lease_until: Mapped[float | None]
    claimed_at: Mapped[float | None]  # of this attempt; null while nobody runs it
    ran_seconds: Mapped[float] = mapped_column(default=0.0, server_default=text("0"))  # in all attempts that are over

    last_seq: Mapped[int] = mapped_column(BigInt, default=0)
    step: Mapped[int] = mapped_column(BigInt, default=0)  # optimizer steps completed
    epoch: Mapped[int] = mapped_column(default=0)  # epochs completed
    steps_total: Mapped[int | None] = mapped_column(BigInt)
    epochs: Mapped[int]
    latest: Mapped[dict[str, Any]]  # loss, lr; mean_loss, validation, samples_per_second of the last epoch
    best: Mapped[dict[str, Any] | None]  # step, epoch and figures of the best checkpoint
    failure: Mapped[dict[str, Any] | None]

    pinned_job: Mapped[int | None] = mapped_column(BigInt)  # whose checkpoint it begins with; null again once that is let go
    pinned_step: Mapped[int | None] = mapped_column(BigInt)
    forked_from: Mapped[dict[str, Any] | None]  # job, and the step whose weights it began with, if any
    idempotency_key: Mapped[str | None]
    body_hash: Mapped[str | None]

    created_at: Mapped[float]
    queued_at: Mapped[float]  # kept when a worker gives the job back: it does not lose its place
    started_at: Mapped[float | None]  # of the first attempt
    ended_at: Mapped[float | None]

    __table_args__ = (
        UniqueConstraint("idempotency_key"),
        CheckConstraint("state IN ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')", name="state"),
        CheckConstraint("(ended_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))", name="ended"),
        CheckConstraint(
            "(state = 'running') = (lease_until IS NOT NULL) AND (state = 'running') = (lease_owner IS NOT NULL)",
            name="lease",
        ),
        Index("ix_jobs_claim", "state", "queue", text("priority DESC"), "queued_at", "id"),
        Index("ix_jobs_state", "state", "id"),
        Index(
            "ix_jobs_pinned", "pinned_job", "pinned_step",
            sqlite_where=text("pinned_job IS NOT NULL"), postgresql_where=text("pinned_job IS NOT NULL"),
        ),
        # ids are never used again; a row has room to change in its own page, as renewals and appends touch no index
        {"sqlite_autoincrement": True, "postgresql_with": {"fillfactor": 70}},
    )  # fmt: skip


class EventRecord(Base):
    """One event of a job's log. `seq` runs from 1 without gaps, in commit order."""

    __tablename__ = "events"

    job_id: Mapped[int] = mapped_column(BigInt, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInt, primary_key=True)
    at: Mapped[float]
    attempt: Mapped[int]
    step: Mapped[int] = mapped_column(BigInt)
    kind: Mapped[str]
    data: Mapped[str]  # raw JSON: most readers pass it on as it is

    __table_args__ = (Index(None, "job_id", "kind", "seq"),)


class Command(Base):
    """Something a person asked of a job that its worker is to do. Its done mark and its event commit together."""

    __tablename__ = "commands"

    id: Mapped[int] = mapped_column(BigInt, primary_key=True)
    job_id: Mapped[int] = mapped_column(BigInt, ForeignKey("jobs.id", ondelete="CASCADE"))
    kind: Mapped[str]
    payload: Mapped[dict[str, Any] | None]  # of an `adjust`: group, changes, step
    by: Mapped[str]
    created_at: Mapped[float]
    done_at: Mapped[float | None]

    __table_args__ = (
        CheckConstraint("kind IN ('adjust', 'cancel', 'pause')", name="kind"),
        Index(
            "ix_commands_pending", "job_id", "id", sqlite_where=text("done_at IS NULL"), postgresql_where=text("done_at IS NULL")
        ),
        {"sqlite_autoincrement": True},
    )


class Dataset(Base):
    """An uploaded dataset. Its files lie in the uploads directory, in a folder named by its id, and never change."""

    __tablename__ = "datasets"

    id: Mapped[int] = mapped_column(BigInt, primary_key=True)
    name: Mapped[str | None]
    sha256: Mapped[str]  # of its contents: the same ones are stored once
    images: Mapped[int] = mapped_column(BigInt)
    bytes: Mapped[int] = mapped_column(BigInt)
    report: Mapped[dict[str, Any]]  # what the check found
    created_at: Mapped[float]

    __table_args__ = (UniqueConstraint("sha256"), {"sqlite_autoincrement": True})


class Leftover(Base):
    """A job's folder that is to be looked through, since the job was deleted, or one that was pinned to it (`store.deletion`)."""

    __tablename__ = "leftovers"

    job_id: Mapped[int] = mapped_column(BigInt, primary_key=True, autoincrement=False)  # no reference: the job may be gone


class Worker(Base):
    """A worker, as its last heartbeat described it."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    queues: Mapped[list[str]]
    devices: Mapped[dict[str, Any]]
    running: Mapped[list[int]]
    draining: Mapped[bool] = mapped_column(default=False, server_default=false())  # takes no new job, and leaves when idle
    started_at: Mapped[float]
    seen_at: Mapped[float]
