"""The schema's history: `migrations/`, by Alembic, wherever that package is installed."""

from __future__ import annotations

from functools import cache

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

_LOCK = 0x67726166
"""The key of PostgreSQL's advisory lock round a migration: `graf`."""


def config() -> Config:
    """Alembic's configuration. `attributes["connection"]` says where to work."""
    made = Config()
    made.set_main_option("script_location", "migrations:")
    return made


def upgrade(connection: Connection) -> None:
    """Bring the schema to head inside the transaction of `connection`, which must write."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    if at_head(connection):
        return
    using = config()
    using.attributes["connection"] = connection
    command.upgrade(using, "head")
    if connection.dialect.name == "sqlite":
        torn = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if torn is not None:
            raise RuntimeError(f"the migration left a row of {torn[0]} without its {torn[2]}; nothing was changed")


def at_head(connection: Connection) -> bool:
    """Whether the schema is the one that this code expects."""
    return set(MigrationContext.configure(connection).get_current_heads()) == _heads()


@cache
def _heads() -> set[str]:
    return set(ScriptDirectory.from_config(config()).get_heads())
