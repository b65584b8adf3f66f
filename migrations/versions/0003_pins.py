"""Pins: a job that begins with the weights of another one's checkpoint holds that checkpoint until it has ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

HELD = sa.text("pinned_job IS NOT NULL")


def upgrade() -> None:
    """Add them. What earlier jobs pinned is not held: their sources were free to go, too."""
    # plain columns: added in place, on SQLite too
    op.add_column("jobs", sa.Column("pinned_job", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True))
    op.add_column("jobs", sa.Column("pinned_step", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True))
    op.create_index("ix_jobs_pinned", "jobs", ["pinned_job", "pinned_step"], sqlite_where=HELD, postgresql_where=HELD)


def downgrade() -> None:
    """Take them away."""
    op.drop_index("ix_jobs_pinned", "jobs")
    op.drop_column("jobs", "pinned_step")
    op.drop_column("jobs", "pinned_job")
