"""Adjustments: commands that change a parameter group, and what they change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them."""
    with _commands("'adjust', 'cancel', 'pause'") as commands:
        commands.add_column(sa.Column("payload", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """Take them away: those that were not yet done are forgotten."""
    op.execute("DELETE FROM commands WHERE kind = 'adjust'")
    with _commands("'cancel', 'pause'") as commands:
        commands.drop_column("payload")


@contextmanager
def _commands(kinds: str) -> Iterator[BatchOperations]:
    """Alter `commands`, which may then be of these kinds; SQLite builds it anew, and reflection does not see all of it."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    if sqlite:
        op.drop_index("ix_commands_pending", "commands")
    with op.batch_alter_table("commands", table_kwargs={"sqlite_autoincrement": True}) as commands:
        yield commands
        commands.drop_constraint(op.f("ck_commands_kind"), type_="check")
        commands.create_check_constraint(op.f("ck_commands_kind"), sa.text(f"kind IN ({kinds})"))
    if sqlite:
        op.create_index("ix_commands_pending", "commands", ["job_id", "id"], sqlite_where=sa.text("done_at IS NULL"))
