"""Leftovers: the folders that deleted jobs leave."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "leftovers",
        sa.Column("job_id", INTEGER, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_leftovers")),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("leftovers")
