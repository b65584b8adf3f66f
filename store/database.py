"""One database, SQLite or PostgreSQL, and the only two ways to a session: `read` and `write`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from sqlalchemy import NullPool
from sqlalchemy.orm import Session

from store import clock as clocks
from store import engines, schema


class Database:
    """A database by URL: `sqlite:///PATH` or `postgresql://USER@HOST/NAME`.

    `clock` stands in for the database's own clock in tests. Functions of this package take a session and raise
    `store.errors`; nothing but `write` commits.
    """

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        self.url = url
        self.engine = engines.engine(url)
        self._writing = self.engine.execution_options(**{engines.WRITES: True})
        self._info = {} if clock is None else {clocks.CLOCK: clock}
        # SQLite lets one writer in, and those who wait poll with growing pauses: a lock wakes the next one at once
        self._writer = threading.Lock() if self.engine.dialect.name == "sqlite" else nullcontext()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading. What it loaded stays usable after it."""
        with Session(self.engine, autoflush=False, expire_on_commit=False, info=dict(self._info)) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session for writing: commits at the end, rolls back where the block raises. Keep it short, never nest it."""
        with self._writer, Session(self._writing, autoflush=False, expire_on_commit=False, info=dict(self._info)) as session:
            yield session
            session.commit()

    @staticmethod
    def now(session: Session) -> float:
        """The present in epoch seconds, by the database's clock."""
        return clocks.now(session)

    def upgrade(self) -> None:
        """Bring the schema to head, all or nothing. Safe when several processes start at once: one works, the others wait."""
        url = engines.parse(self.url)
        if url.get_backend_name() == "sqlite":
            Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
        # SQLite alters a table by building it anew; with foreign keys on, dropping the old one would delete what refers to it
        engine = engines.engine(self.url, foreign_keys=False, poolclass=NullPool)
        with self._writer, engine.execution_options(**{engines.WRITES: True}).begin() as connection:
            schema.upgrade(connection)

    def at_head(self) -> bool:
        """Whether the schema is the one that this code expects. False on an empty database."""
        with self.engine.connect() as connection:
            return schema.at_head(connection)

    def dispose(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()
