"""Alembic's environment: on the connection it is given, else on the database of the settings."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from store.database import Database
from store.settings import Settings
from store.tables import Base


def compared(_thing: object, name: str | None, kind: str, _reflected: bool, _other: object) -> bool:
    """Whether autogenerate compares this. SQLite cannot tell that this index orders by priority descending; PostgreSQL can."""
    return not (kind == "index" and name == "ix_jobs_claim" and context.get_context().dialect.name == "sqlite")


def run(connection: Connection) -> None:
    """Work on `connection`, in its transaction where it has one."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        transactional_ddl=True,
        include_object=compared,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if isinstance(given, Connection):
    run(given)
else:
    engine = given if given is not None else Database(Settings().database).engine
    with engine.connect() as opened:
        run(opened)
