"""How a connection is made: the one place that knows which database it is."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

import orjson
from sqlalchemy import URL, Connection, Engine, Pool, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor

SQLITE_NEEDS = (3, 35, 0)
"""The first SQLite that has UPDATE … RETURNING."""
BUSY_SECONDS = 30
"""How long SQLite waits for another writer."""
WRITES = "graft_writes"
"""The execution option of connections whose transactions write."""


def parse(url: str) -> URL:
    """The URL with our driver in it. Raises ValueError for a database that Graft does not run on."""
    parsed = make_url(url)
    backend = parsed.drivername.partition("+")[0]
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ValueError(f"'{backend}' is no database that Graft runs on; use sqlite:///PATH or postgresql://USER@HOST/NAME")
    if parsed.database in (None, "", ":memory:"):
        raise ValueError("SQLite in memory cannot be shared between processes; name a file: sqlite:///PATH")
    return parsed


def engine(url: str, *, foreign_keys: bool = True, poolclass: type[Pool] | None = None) -> Engine:
    """An engine with our settings. `foreign_keys=False` is for migrations: see `Database.upgrade`."""
    parsed = parse(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed, foreign_keys=foreign_keys, poolclass=poolclass)
    return create_engine(
        parsed,
        isolation_level="READ COMMITTED",  # conditional updates rely on it: they look again at the row they waited for
        pool_pre_ping=True,
        poolclass=poolclass,
        json_serializer=_dumps,
        json_deserializer=orjson.loads,
    )


def _sqlite(url: URL, *, foreign_keys: bool, poolclass: type[Pool] | None) -> Engine:
    if sqlite3.sqlite_version_info < SQLITE_NEEDS:
        needs = ".".join(map(str, SQLITE_NEEDS))
        raise RuntimeError(f"SQLite {sqlite3.sqlite_version} is too old; Graft needs {needs} (a newer Python has it)")
    made = create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        poolclass=poolclass,
        json_serializer=_dumps,
        json_deserializer=orjson.loads,
    )

    @event.listens_for(made, "connect")
    def _connect(connection: DBAPIConnection, _record: object) -> None:
        connection.isolation_level = None  # the driver shall not begin transactions by itself: it loses updates
        cursor = connection.cursor()
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        cursor.close()

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        # a deferred transaction that reads and then writes fails when another wrote in between, whatever the timeout
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return made


def _write_ahead(cursor: DBAPICursor) -> None:
    """Switch to write-ahead logging. The first switch of a new file fails at once, timeout or not, while another is at it."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()
