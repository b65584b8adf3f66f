"""Control: paused jobs and the running time, forks, and workers that drain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

FINAL = "'succeeded', 'failed', 'cancelled'"


def upgrade() -> None:
    """Add them."""
    with op.batch_alter_table("workers") as workers:
        workers.add_column(sa.Column("draining", sa.Boolean(), server_default=sa.false(), nullable=False))
    with _jobs() as jobs:
        jobs.add_column(sa.Column("claimed_at", sa.Double(), nullable=True))
        jobs.add_column(sa.Column("ran_seconds", sa.Double(), server_default=sa.text("0"), nullable=False))
        jobs.add_column(sa.Column("forked_from", sa.JSON(none_as_null=True), nullable=True))
        _check(jobs, "ck_jobs_state", f"state IN ('queued', 'running', 'paused', {FINAL})")
    with _commands() as commands:
        _check(commands, "ck_commands_kind", "kind IN ('cancel', 'pause')")
    op.execute("UPDATE jobs SET claimed_at = started_at WHERE state = 'running'")


def downgrade() -> None:
    """Take them away: paused jobs wait in their queue again, pauses that were not yet obeyed are forgotten."""
    op.execute("UPDATE jobs SET state = 'queued' WHERE state = 'paused'")
    op.execute("UPDATE jobs SET requested = NULL WHERE requested = 'pause'")
    op.execute("DELETE FROM commands WHERE kind = 'pause'")
    with _commands() as commands:
        _check(commands, "ck_commands_kind", "kind IN ('cancel')")
    with _jobs() as jobs:
        for column in ("forked_from", "ran_seconds", "claimed_at"):
            jobs.drop_column(column)
        _check(jobs, "ck_jobs_state", f"state IN ('queued', 'running', {FINAL})")
    with op.batch_alter_table("workers") as workers:
        workers.drop_column("draining")


def _check(table: BatchOperations, name: str, condition: str) -> None:
    """Put another CHECK in the place of the one of this name."""
    table.drop_constraint(op.f(name), type_="check")
    table.create_check_constraint(op.f(name), sa.text(condition))


@contextmanager
def _jobs() -> Iterator[BatchOperations]:
    """Alter `jobs`; SQLite builds it anew, as 0001 made it, with what reflection does not see of it."""
    if _sqlite():
        op.drop_index("ix_jobs_claim", "jobs")
    with op.batch_alter_table("jobs", table_kwargs={"sqlite_autoincrement": True}) as jobs:
        yield jobs
    if _sqlite():
        op.create_index("ix_jobs_claim", "jobs", ["state", "queue", sa.text("priority DESC"), "queued_at", "id"])


@contextmanager
def _commands() -> Iterator[BatchOperations]:
    """Alter `commands`, likewise."""
    if _sqlite():
        op.drop_index("ix_commands_pending", "commands")
    with op.batch_alter_table("commands", table_kwargs={"sqlite_autoincrement": True}) as commands:
        yield commands
    if _sqlite():
        op.create_index("ix_commands_pending", "commands", ["job_id", "id"], sqlite_where=sa.text("done_at IS NULL"))


def _sqlite() -> bool:
    return op.get_bind().dialect.name == "sqlite"
